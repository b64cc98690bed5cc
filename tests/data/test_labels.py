"""Labels drawn from a histogram: a pure function of seed and position."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale.data.labels import LabelsError, LabelStream, label_histogram
from sid_scale.data.shards import read_index
from tests.data.shards import write

HISTOGRAM = [5, 0, 3, 2]


def labels(batches: int, world_size: int = 1, seed: int = 0, start: int = 0) -> torch.Tensor:
    """The labels of all ranks in the global order, 16 a global batch."""
    parts = []
    for rank in range(world_size):
        stream = LabelStream(
            HISTOGRAM,
            seed=seed,
            global_batch=16,
            rank=rank,
            world_size=world_size,
            micro_batch=4,
            start=start,
        )
        parts += list(islice(stream, batches * 4 // world_size))
    index = torch.cat([part.index for part in parts])
    order = index.argsort()
    assert index[order].equal(torch.arange(start, start + 16 * batches))
    return torch.cat([part.labels for part in parts])[order]


@pytest.mark.parametrize("world_size", [2, 4])
def test_labels_are_the_same_for_every_number_of_ranks(world_size: int) -> None:
    assert labels(10, world_size).equal(labels(10))


def test_resuming_equals_going_on() -> None:
    assert labels(3, start=7 * 16).equal(labels(10)[7 * 16 :])


def test_micro_batch_size_does_not_change_the_labels() -> None:
    stream = LabelStream(HISTOGRAM, seed=0, global_batch=16, rank=0, world_size=1, micro_batch=16)
    assert next(stream).labels.equal(labels(1))


def test_seeds_differ() -> None:
    assert not labels(4, seed=1).equal(labels(4))


def test_classes_occur_as_often_as_the_histogram_says() -> None:
    drawn = labels(1000)
    assert drawn.dtype == torch.int64
    frequencies = np.bincount(drawn.numpy(), minlength=4) / len(drawn)
    np.testing.assert_allclose(frequencies, np.array(HISTOGRAM) / 10, atol=0.015)
    assert frequencies[1] == 0


def test_labels_go_to_a_gpu_through_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, pins = labels(1), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pins.append(tensor) or tensor)
    assert labels(1).equal(wanted)
    assert torch.cat(pins).equal(wanted)


@pytest.mark.faults
@pytest.mark.parametrize("histogram", [[0, 0], [3, -1]])
def test_what_is_no_histogram_is_refused(histogram: list[int]) -> None:
    with pytest.raises(ValueError, match="not a class histogram"):
        LabelStream(histogram, seed=0, global_batch=4, rank=0, world_size=1, micro_batch=4)


# What they are drawn from


def test_labels_are_drawn_from_the_data_uniformly_or_from_a_list(tmp_path: Path) -> None:
    index = read_index(write(tmp_path / "set", 10, 4))
    given = tmp_path / "labels.txt"
    given.write_text("3 3\n0\n")
    assert label_histogram("histogram", 7, index) == [2, 2, 2, 1, 1, 1, 1]
    assert label_histogram("histogram", 3, None) == [1, 1, 1]
    assert label_histogram("uniform", 7, index) == [1] * 7
    assert label_histogram(str(given), 4, index) == [1, 0, 0, 2]


@pytest.mark.faults
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "holds no class"),
        (b"1 4", r"entry 2, '4', is no class of 0\.\.3"),
        (b"1 -1", r"entry 2, '-1'"),
        (b"cat", r"entry 1, 'cat'"),
        (b"\xff\xfe", "nor a text file of classes"),
    ],
)
def test_a_list_that_is_none_is_named(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(LabelsError, match=f"labels.txt.*{told}"):
        label_histogram(str(path), 4, None)


@pytest.mark.faults
def test_neither_a_way_nor_a_file_is_named() -> None:
    with pytest.raises(LabelsError, match="labels: unifrom is neither histogram, uniform nor"):
        label_histogram("unifrom", 4, None)
