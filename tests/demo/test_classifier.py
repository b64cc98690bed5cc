"""The demo's feature network: what is shipped, what a discriminator sees of it, its training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sid_scale.demo.classifier import DigitClassifier
from sid_scale.demo.digits import digit_images
from sid_scale.demo.prepare import CLASSIFIER
from sid_scale.demo.train_classifier import (
    ClassifierRecipe,
    distort,
    make_classifier,
    train_classifier,
    unseen_accuracy,
)
from sid_scale.networks.features import FeatureNetwork, load_feature_network
from sid_scale.networks.features.weights import load_weights

SHORT = ClassifierRecipe(iterations=4, batch=8)
both_sizes = pytest.mark.parametrize("resolution", [8, 32])


@pytest.fixture(scope="module")
def features() -> FeatureNetwork:
    return load_feature_network("digits", CLASSIFIER, seed=0, device="cpu")


def digits(resolution: int) -> Tensor:
    """Real digits, (16, 3, R, R) in [-1, 1]."""
    return digit_images(resolution)[0][:16].float() / 127.5 - 1


# --- what is shipped ----------------------------------------------------------------------


@both_sizes
def test_shipped_classifier_reads_digits_that_it_has_not_seen(resolution: int):
    classifier = DigitClassifier()
    load_weights(classifier, CLASSIFIER)
    assert unseen_accuracy(classifier, resolution) >= 0.97


def test_shipped_file_is_small():
    assert CLASSIFIER.stat().st_size < 1e6


# --- its features -------------------------------------------------------------------------


@both_sizes
def test_maps_halve_and_allow_a_discriminator_each(resolution: int, features: FeatureNetwork):
    maps = features(digits(resolution))
    sides = [x.shape[-1] for x in maps]
    assert [x.shape for x in maps] == [
        (16, channels, side, side) for channels, side in zip(features.channels, sides)
    ]
    assert sides == [2 * side for side in sides[1:]] + sides[-1:]
    # Map i is doubled, halved by len(maps) - i convolutions, and read by one of 4x4.
    assert all(2 * side >= 4 * 2 ** (len(maps) - i) for i, side in enumerate(sides))


def test_features_see_colour(features: FeatureNetwork):
    grey = digits(8)
    tinted = grey + torch.tensor([0.2, 0.0, -0.2]).view(3, 1, 1)
    for plain, other in zip(features(grey), features(tinted)):
        assert (plain - other).square().mean() > 0.001 * plain.square().mean()


@both_sizes
def test_penalties_of_gradients_are_differentiable(resolution: int, features: FeatureNetwork):
    images = digits(resolution).requires_grad_()
    energy = sum(x.square().sum() for x in features(images))
    (gradient,) = torch.autograd.grad(energy, images, create_graph=True)
    gradient.square().sum().backward()
    assert images.grad is not None
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


# --- its training -------------------------------------------------------------------------


def silent(_: str) -> None:
    pass


def weights(network: DigitClassifier) -> Tensor:
    return torch.cat([weight.flatten() for weight in network.state_dict().values()])


def test_training_is_a_function_of_its_seed(tmp_path: Path):
    for name, seed in (("1", 1), ("1 again", 1), ("2", 2)):
        recipe = ClassifierRecipe(iterations=4, batch=8, seed=seed)
        make_classifier(tmp_path / name, recipe, silent)
    first, again, other = (
        (tmp_path / name / "classifier" / "model.safetensors").read_bytes()
        for name in ("1", "1 again", "2")
    )
    assert first == again
    assert first != other


def test_training_does_not_see_the_even_half(monkeypatch: pytest.MonkeyPatch):
    def trained(alter: Callable[[Tensor], None] | None) -> Tensor:
        images, labels = digit_images()
        if alter is not None:
            alter(images)
            alter(labels)
        name = "sid_scale.demo.train_classifier.digit_images"
        monkeypatch.setattr(name, lambda _: (images, labels))
        return weights(train_classifier(SHORT, silent))

    as_they_are = trained(None)
    assert as_they_are.isfinite().all()
    assert trained(lambda rows: rows[::2].zero_()).equal(as_they_are)
    assert not trained(lambda rows: rows[1::2].zero_()).equal(as_they_are)


def test_distortions_stay_on_paper_and_within_limits():
    images = torch.full((64, 1, 32, 32), -1.0)
    images[:, :, 12:20, 12:20] = 1.0
    torch.manual_seed(0)
    moved = distort(images, ClassifierRecipe())
    assert moved.amin() == -1
    assert moved.amax() <= 1 + 1e-5
    assert (moved[:, :, :4] == -1).all()  # shifted by 4 pixels at most
    assert (moved != images).flatten(1).any(1).all()
    still = ClassifierRecipe(rotation=0, zoom=0, shift=0)
    torch.testing.assert_close(distort(images, still), images)
