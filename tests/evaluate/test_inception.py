"""Inception: its layers are the published ones, and every file that holds it gives the same."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sid_scale.evaluate.detectors import DetectorError, DetectorFiles, Inception, open_detectors
from sid_scale.evaluate.inception import InceptionLayers, resize, weight_shapes
from tests.evaluate.detectors import random_inception, write_scripted_inception

CPU = torch.device("cpu")
# Of torch-fidelity 0.4.0, for `random_inception()` and `pictures()`; pytorch-fid 0.3.0 has the same
# features. Channels of each branch of the last block, and the largest probability.
CHANNELS = [0, 400, 700, 1200, 1700, 2000]
PUBLISHED = [
    [0.2206143, 1.3924203, 2.9425039, 0.1250937, 0.1045367, 1.2971654],
    [0.1573637, 1.8601630, 3.3677788, 0.1633968, 0.1784694, 1.1117498],
]
PUBLISHED_CLASSES = {False: [(986, 0.4970), (986, 0.4862)], True: [(986, 0.4382), (592, 0.4985)]}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return random_inception()


@pytest.fixture(scope="module")
def scripted(tmp_path_factory, weights: dict[str, Tensor]) -> Path:
    path = tmp_path_factory.mktemp("inception") / "inception-2015-12-05.pt"
    return write_scripted_inception(path, weights)


def pictures(height: int = 40, width: int = 24) -> Tensor:
    """Two smooth images, uint8 (2, 3, H, W)."""
    y, x, colour = np.ogrid[0 : 3 : height * 1j, 0 : 2 : width * 1j, 0:3]
    waves = [np.sin(x * y + colour), np.cos(2 * x + y * (colour + 1))]
    images = np.stack([(wave * 127 + 128).astype(np.uint8) for wave in waves])
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@torch.no_grad()
def test_the_layers_are_the_published_ones(weights: dict[str, Tensor]):
    assert sum(w.numel() for name, w in weights.items() if "running" not in name) == 23_850_960
    network, images = InceptionLayers(weights), pictures()
    features = network(images, return_features=True)
    assert features.shape == (2, 2048)
    torch.testing.assert_close(features[:, CHANNELS], torch.tensor(PUBLISHED), rtol=1e-4, atol=1e-5)
    for no_output_bias, expected in PUBLISHED_CLASSES.items():
        probabilities = network(images, no_output_bias=no_output_bias)
        assert probabilities.shape == (2, 1008)
        for row, (number, largest) in zip(probabilities, expected, strict=True):
            assert row.argmax() == number
            assert row[number].item() == pytest.approx(largest, abs=1e-3)


def test_images_are_resized_as_in_tensorflow_1():
    """Pixel i of 5 lies at i * 3 / 5 of 3, or at i * 20 / 5 of 20, and beyond the last is the
    last."""
    row = torch.tensor([[[[0.0, 10.0, 40.0]]]])
    expected = torch.tensor([0, 6, 16, 34, 40]).float()
    torch.testing.assert_close(resize(row, 5), expected.expand(1, 1, 5, 5))
    torch.testing.assert_close(resize(row.mT, 5), expected[:, None].expand(1, 1, 5, 5))
    tall = torch.arange(20, dtype=torch.uint8).reshape(1, 1, 20, 1)
    assert resize(tall, 5)[0, 0, :, 0].tolist() == [0, 4, 8, 12, 16]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("pt_inception-2015-12-05-6726825d.pth", {"_use_new_zipfile_serialization": False}),
        ("weights-inception-2015-12-05-6726825d.pth", {}),
    ],
)
@torch.no_grad()
def test_weights_and_torchscript_of_one_network_see_the_same(
    tmp_path: Path, scripted: Path, weights: dict[str, Tensor], name: str, options: dict[str, Any]
):
    counters = {
        weight.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for weight in weights
        if weight.endswith("running_var")
    }
    torch.save(weights | ({} if options else counters), tmp_path / name, **options)
    images = pictures(70, 50)
    metrics = ["fid", "is"]
    one, two = (open_detectors(metrics, DetectorFiles(p), CPU) for p in (scripted, tmp_path / name))
    for kind, tolerance in (("inception", 1e-3), ("inception_p", 1e-4)):
        seen = two.extract[kind](images)
        assert seen.dtype == torch.float32
        assert (seen[0] - seen[1]).abs().max() > 100 * tolerance
        torch.testing.assert_close(seen, one.extract[kind](images), rtol=0, atol=tolerance)
    assert one.hashes.keys() == two.hashes.keys()


# --- other files --------------------------------------------------------------------------


class Runs:
    """Unpickled the usual way, it leaves a file behind."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def refused(path: Path, match: str) -> None:
    with pytest.raises(DetectorError, match=match) as told:
        open_detectors(["fid"], DetectorFiles(path), CPU)
    assert str(told.value).startswith(f"{path}: ")
    assert "pretrained/metrics/inception-2015-12-05.pt)" in str(told.value)
    assert "pt_inception-2015-12-05-6726825d.pth" in str(told.value)


@pytest.mark.faults
@pytest.mark.parametrize("protocol", [2, 4])
def test_edms_pickle_is_not_run_and_the_message_says_what_to_fetch(tmp_path: Path, protocol: int):
    canary, path = tmp_path / "canary", tmp_path / "inception-2015-12-05.pkl"
    path.write_bytes(pickle.dumps({"net": Runs(canary)}, protocol=protocol))
    refused(path, r"a pickle, such as the inception-2015-12-05\.pkl that EDM and EDM2 fetch")
    for old in (False, True):
        torch.save({"net": Runs(canary)}, path, _use_new_zipfile_serialization=not old)
        refused(path, "it holds more than weights")
    assert not canary.exists()


Weights = dict[str, Tensor]


def _without(weights: Weights) -> Weights:
    return {k: v for k, v in weights.items() if k != "Mixed_6c.branch7x7_2.bn.bias"}


def _not_finite(weights: Weights) -> Weights:
    return weights | {"Conv2d_2a_3x3.bn.weight": torch.full((32,), torch.nan)}


@pytest.mark.faults
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_without, r"another network: missing Mixed_6c\.branch7x7_2\.bn\.bias \("),
        (lambda w: w | {"AuxLogits.fc.bias": torch.zeros(1000)}, r"unknown AuxLogits\.fc\.bias"),
        (lambda w: w | {"fc.weight": torch.zeros(1000, 2048)}, r"\[1000, 2048\], not \[1008, 2048"),
        (_not_finite, r"Conv2d_2a_3x3\.bn\.weight holds what is no finite number"),
        (lambda w: w | {"fc.bias": torch.zeros(1008).long()}, r"fc\.bias holds what is no finite"),
        (lambda w: {"state_dict": w}, "unknown state_dict; missing .* and 469 more"),
        (lambda w: w["fc.bias"], "no weights by their names, but Tensor"),
    ],
)
def test_weights_of_another_network_are_refused(
    tmp_path: Path, change: Callable[[Weights], Any], complaint: str
):
    one = torch.ones(1)  # a small file
    weights = {name: one.expand(shape) for name, shape in weight_shapes().items()}
    torch.save(change(weights), tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", complaint)


@pytest.mark.faults
def test_what_is_no_network_at_all_is_refused(tmp_path: Path):
    def written(contents: bytes) -> Path:
        (tmp_path / "file").write_bytes(contents)
        return tmp_path / "file"

    def saved(old: bool) -> bytes:
        torch.save(
            {"fc.bias": torch.zeros(1008)},
            tmp_path / "saved",
            _use_new_zipfile_serialization=not old,
        )
        return (tmp_path / "saved").read_bytes()

    refused(written(b"<html>"), "neither TorchScript nor weights")
    refused(written(b""), "neither TorchScript nor weights")
    for old in (False, True):
        for length in (100, len(saved(old)) - 20):
            refused(written(saved(old)[:length]), "damaged, or")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    refused(tmp_path / "images.npz", "damaged, or no network")
    refused(tmp_path, "not a file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a file")
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "other.pt"))
    with pytest.raises(DetectorError, match="cannot be called with return_features=True"):
        Inception(tmp_path / "other.pt", CPU).features(pictures())
