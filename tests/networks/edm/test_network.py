"""EDM's networks: published outputs, published sizes, precision, recomputation."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from sid_scale.networks import parameter_count
from sid_scale.networks.checkpoint_activations import checkpoint_activations
from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.edm.sizes import TEACHERS
from tests.vectors import Vectors, relative_error

FILES = (
    *("edm_songunet_ddpmpp", "edm_songunet_ddpmpp_cond", "edm_songunet_ncsnpp"),
    *("edm_songunet_ncsnpp_cond", "edm_dhariwal", "edm_dhariwal_uncond"),
)
MILLIONS = {
    "cifar10-32x32-uncond-vp": 55.73,
    "cifar10-32x32-cond-vp": 55.74,
    "ffhq-64x64-uncond-vp": 61.81,
    "afhqv2-64x64-uncond-vp": 61.81,
    "cifar10-32x32-uncond-ve": 56.40,
    "ffhq-64x64-uncond-ve": 62.76,
    "imagenet-64x64-cond-adm": 295.90,
}


@pytest.fixture(params=FILES)
def vectors(reference_dir: Path, request) -> Vectors:
    return Vectors(reference_dir / f"{request.param}.npz")


def classes(vectors: Vectors) -> torch.Tensor | None:
    return vectors.classes("class_labels") if "class_labels" in vectors else None


# --- published outputs --------------------------------------------------------------------


@pytest.mark.reference
def test_forward_is_the_published_one(vectors):
    network, x = vectors.network("state."), vectors["x"].requires_grad_()
    prediction = network(x, vectors["sigma"], classes(vectors), features=(-1,))
    (deepest,) = prediction.features
    (gradient,) = torch.autograd.grad((prediction.denoised * vectors["cotangent"]).sum(), x)
    denoised, deepest = prediction.denoised.detach(), deepest.detach()
    assert prediction.logvar is None
    assert relative_error(denoised, vectors["denoised"]) < 1e-5
    assert relative_error(deepest, vectors["encoder_features"]) < 1e-5
    assert relative_error(deepest.mean(1, keepdim=True), vectors["encoder_mean"]) < 1e-5
    assert relative_error(gradient, vectors["grad_x"]) < 1e-5


@pytest.mark.reference
def test_labels_of_augmentation_and_none_of_a_class_are_the_published_ones(vectors):
    network, inputs = vectors.network("state."), (vectors["x"], vectors["sigma"])
    if "augment_labels" in vectors:
        labels = vectors["augment_labels"]
        prediction = network(*inputs, classes(vectors), features=(-1,), augment_labels=labels)
        assert relative_error(prediction.denoised, vectors["denoised_augment"]) < 1e-5
        features = vectors["encoder_features_augment"]
        assert relative_error(prediction.features[0], features) < 1e-5
        zeros = network(*inputs, classes(vectors), augment_labels=torch.zeros_like(labels))
        assert relative_error(zeros.denoised, vectors["denoised"]) < 1e-5
    if "denoised_no_label" in vectors:
        unlabelled = network(*inputs).denoised
        assert relative_error(unlabelled, vectors["denoised_no_label"]) < 1e-5


@pytest.mark.reference
def test_encoder_alone_gives_the_same_map_and_runs_no_decoder(vectors):
    network, decoder_runs = vectors.network("state."), []
    for block in network.model.dec.values():
        block.register_forward_hook(lambda *_: decoder_runs.append(1))
    inputs = vectors["x"], vectors["sigma"], classes(vectors)
    prediction = network(*inputs, features=(-1,), decoded=0)
    assert prediction.denoised is None
    assert not decoder_runs
    assert relative_error(prediction.features[0], vectors["encoder_features"]) < 1e-5
    two = network(*inputs, decoded=2).denoised
    assert relative_error(two, vectors["denoised"][:2]) < 1e-5


# --- precision ----------------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-2), (torch.float16, 5e-3)])
def test_half_precision_stays_near_float32(vectors, dtype, tolerance):
    network = vectors.network("state.", dtype)
    prediction = network(vectors["x"], vectors["sigma"], classes(vectors), features=(-1,))
    assert prediction.denoised.dtype == torch.float32
    assert prediction.features[0].dtype == dtype
    assert relative_error(prediction.denoised, vectors["denoised"]) < tolerance


@pytest.mark.reference
def test_a_frozen_network_keeps_its_embedding_in_float32_and_its_body_in_the_compute_dtype(vectors):
    model = vectors.network("state.", torch.bfloat16).model
    body = next(block for name, block in model.enc.items() if "_block" in name)
    assert model.map_layer0.weight.dtype == body.affine.weight.dtype == torch.float32
    assert body.conv0.weight.dtype == body.norm0.weight.dtype == torch.bfloat16


def test_fourier_frequencies_keep_their_precision_when_the_network_is_cast(tiny):
    network = replace(tiny, embedding_type="fourier").build().to(torch.bfloat16)
    assert network.model.map_layer0.weight.dtype == torch.bfloat16
    assert network.model.map_noise.freqs.dtype == torch.float32


# --- what is built ------------------------------------------------------------------------


@pytest.fixture
def tiny() -> EDMArchitecture:
    return EDMArchitecture(
        "SongUNet", 8, 3, 4, model_channels=8, channel_mult=(1, 2), num_blocks=1,
        attn_resolutions=(4,),
    )  # fmt: skip


@pytest.mark.parametrize("name", MILLIONS)
def test_published_parameter_counts(name: str):
    assert round(parameter_count(TEACHERS[name]) / 1e6, 2) == MILLIONS[name]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"model_type": "UNet"}, "model_type"),
        ({"model_channels": 9}, "9 channels"),
        ({"model_channels": 3}, "3 channels"),
        ({"model_channels": 10}, "30 channels"),  # of a decoder block, with what it is handed
        ({"model_channels": 2, "channel_mult": (4,)}, "2 channels"),  # of the first convolution
        ({"model_channels": 5}, "5 channels cannot hold cosines"),
        ({"model_type": "DhariwalUNet", "model_channels": 224, "channel_mult": (1,)}, "3 heads"),
        ({"img_resolution": 9}, "img_resolution"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"resample_filter": (1, 3, 1)}, "resample_filter"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dim": -1}, "label_dim"),
        ({"label_dim": (4,)}, "label_dim"),
        ({"attn_resolutions": 4}, "attn_resolutions"),
        ({"sigma_data": 10**30}, "sigma_data"),
        ({"model_type": "DhariwalUNet", "embedding_type": "fourier"}, "embedding_type"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(tiny, settings, fault):
    tiny.check()
    with pytest.raises(ValueError, match=fault):
        replace(tiny, **settings).check()


@pytest.mark.parametrize("model_type", ["SongUNet", "DhariwalUNet"])
def test_recomputed_blocks_give_the_same_gradients(tiny, model_type):
    architecture = replace(tiny, model_type=model_type, augment_dim=9)
    torch.manual_seed(0)
    network = architecture.build()
    x, sigma, condition = torch.randn(2, 3, 8, 8), torch.rand(2), torch.tensor([0, 3])

    def gradients() -> list[torch.Tensor]:
        denoised = network(x, sigma, condition, augment_labels=torch.ones(2, 9)).denoised
        return list(torch.autograd.grad(denoised.square().mean(), network.parameters()))

    kept = gradients()
    checkpoint_activations(network, "checkpoint")
    assert all(map(torch.equal, kept, gradients()))


def test_a_new_network_trains(tiny):
    torch.manual_seed(0)
    network, images = tiny.build(), 0.5 * torch.randn(4, 3, 8, 8).sign()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(60):
        noise = torch.randn_like(images)
        loss = F.mse_loss(network(images + 0.5 * noise, torch.tensor(0.5)).denoised, images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
