"""Reading pickles: plain data comes out as it went in, tensors bit by bit, the rest as a name."""

import collections
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sid_scale.pickles import reader
from sid_scale.pickles.reader import PickledObject, PickledTensor, PickleError, open_pickle
from sid_scale.pickles.values import array, number, numbers
from tests.networks.published import persistent
from tests.pickles.hostile import dumps
from tests.sources import python2_pickle

PROTOCOLS = [2, 3, 4, 5]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**127), 2**127 - 1)
    | st.floats(allow_nan=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=20,
)


def read(folder: Path, pickled: bytes) -> Any:
    """The contents, without tensors, which end with the file."""
    path = folder / "file.pkl"
    path.write_bytes(pickled)
    with open_pickle(path) as contents:
        return contents


def refusal(folder: Path, pickled: bytes) -> str:
    with pytest.raises(PickleError) as caught:
        read(folder, pickled)
    assert str(caught.value).startswith(str(folder / "file.pkl"))
    assert str(caught.value).isprintable()
    return str(caught.value)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_out_as_it_went_in(tmp_path: Path, value: Any, protocol: int):
    assert read(tmp_path, pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_containers_come_out_as_lists_and_dicts(tmp_path: Path, protocol: int):
    value = {"tuple": (1, ("a",)), "set": {1.5}, "ordered": collections.OrderedDict(a=1, b=[2])}
    assert read(tmp_path, pickle.dumps(value, protocol)) == {
        "tuple": [1, ["a"]],
        "set": [1.5],
        "ordered": {"a": 1, "b": [2]},
    }


def test_what_python_2_wrote_is_read_with_a_character_for_each_byte(tmp_path: Path):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2) * 10, np.array([3, 258])
    path = tmp_path / "file.pkl"
    path.write_bytes(python2_pickle(images, labels))
    with open_pickle(path) as contents:
        assert contents["batch_label"] == "training batch 1 of 5"
        assert contents["labels"] == [3, 258]
        np.testing.assert_array_equal(array(contents["data"], "data"), images.reshape(2, 12))
    assert read(tmp_path, b"\x80\x02U\x03\x00\x7f\xff.") == "\x00\x7f\xff"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_come_out_bit_by_bit(tmp_path: Path, protocol: int):
    bits = torch.randint(0, 256, (48,), dtype=torch.uint8)
    whole, halves = bits.view(torch.float64), bits.view(torch.bfloat16).reshape(4, 6)
    tensors = {
        "flags": bits[:5] > 100,  # storages that follow it are not aligned by themselves
        "bytes": bits,
        "whole": whole,
        "part": whole[2:4],
        "columns": halves.T,
        "none": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.tensor(0.25)),
    }
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(tensors, protocol))
    with open_pickle(path) as contents:
        loaded = {name: tensor.load() for name, tensor in contents.items()}
        written = contents["whole"].file.read_bytes()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype, name
        assert loaded[name].shape == tensor.shape, name
        assert loaded[name].is_contiguous(), name
        raw = [
            value.detach().contiguous().flatten().view(torch.uint8)
            for value in (tensor, loaded[name])
        ]
        assert torch.equal(*raw), name
    begin = 8 + int.from_bytes(written[:8], "little")
    for storage in json.loads(written[8:begin]).values():  # each at a multiple of its dtype's size
        size = {"BOOL": 1, "BF16": 2}.get(storage["dtype"]) or int(storage["dtype"][1:]) // 8
        assert (begin + storage["data_offsets"][0]) % size == 0


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_and_numbers_of_numpy(tmp_path: Path, protocol: int):
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    held = {
        "rows": rows,
        "columns": np.asfortranarray(rows),
        "list": np.array([1, 2], np.int64),
        "number": np.float16(0.5),
        "flag": np.bool_(True),
    }
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps(held, protocol))
    with open_pickle(path) as contents:
        for name in ("rows", "columns"):
            np.testing.assert_array_equal(array(contents[name], name), rows)
        assert numbers(contents["list"], "list") == [1, 2]
        assert number(contents["number"], "number") == 0.5
        assert number(contents["flag"], "flag") is True


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_the_name_of_their_class_and_their_attributes(tmp_path: Path, protocol: int):
    net = persistent("SongUNet", 32, label_dim=10)
    net.layers = nn.ModuleDict({"a": nn.Identity()})
    found = read(tmp_path, dumps(net, protocol))
    assert isinstance(found, PickledObject)
    assert found.class_name == "SongUNet"
    assert found.state["_init_args"] == [32]
    assert found.state["_init_kwargs"] == {"label_dim": 10}
    layers = found.state["layers"]
    assert layers.class_name == "torch.nn.modules.container.ModuleDict"
    assert layers.state["_modules"]["a"].class_name == "torch.nn.modules.linear.Identity"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_has_no_meaning_here_is_its_name(tmp_path: Path, protocol: int):
    held = [torch.float32, torch.Size([2]), bytearray(b"raw"), "long " * 1000, np.array(["text"])]
    found = read(tmp_path, pickle.dumps(held, protocol))
    assert {type(value) for value in found} == {PickledObject}
    assert [value.state for value in found] == [{}] * len(held)
    assert [value.class_name for value in found[:2]] == ["torch.float32", "torch.Size"]


def test_names_of_older_versions_of_numpy_are_the_same(tmp_path: Path):
    for module in (b"numpy._core", b"numpy.core"):
        pickled = b"\x80\x02c" + module + b".multiarray\nscalar\n."
        assert read(tmp_path, pickled).class_name == "numpy.core.multiarray.scalar"


def test_nothing_is_left_behind(tmp_path: Path):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps({"a": torch.zeros(3)}))
    (tmp_path / "scratch").mkdir()
    with open_pickle(tmp_path / "file.pkl", scratch=tmp_path / "scratch") as contents:
        assert isinstance(contents["a"], PickledTensor)
        assert len(list((tmp_path / "scratch").iterdir())) == 1
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.faults
def test_a_refusal_says_what_was_asked_for_and_where(tmp_path: Path):
    for protocol, place in [(2, 19), (3, 19), (4, 34), (5, 34)]:  # end of the name, of the frame
        message = refusal(tmp_path, pickle.dumps([os.system], protocol))
        assert f"file.pkl: before byte {place}: asks for 'posix.system'" in message


@pytest.mark.faults
def test_a_refused_name_cannot_control_the_terminal(tmp_path: Path):
    pickled = b"\x80\x04\x8c\x02os\x8c\x06\x1b[2J\n!\x93."
    assert r"asks for 'os.\x1b[2J\n!'" in refusal(tmp_path, pickled)


@pytest.mark.faults
def test_every_cut_is_noticed(tmp_path: Path):
    whole = pickle.dumps({"a": [1.5, "b" * 50, 2**70, ("d",)], "c": b"e" * 50}, 4)
    assert read(tmp_path, whole)
    for length in range(len(whole)):
        assert "fetch" in refusal(tmp_path, whole[:length])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("pickled", "complaint"),
    [
        (pickle.dumps([1], 1), "no pickle of protocol 2 to 5"),
        (b"\x80\x06].", "no pickle of protocol 2 to 5"),
        (b"\x80\x02a.", "the file is damaged"),
        (b"\x80\x02}]a.", "the file is damaged"),
        (b"\x80\x02}(K\x01u.", "the file is damaged"),
        (b"\x80\x02h\x07.", "the file is damaged"),
        (b"\x80\x02)R.", "the file is damaged"),
        (b"\x80\x02]}b.", "the file is damaged"),
        (b"\x80\x02\xff.", "the file is damaged"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "the file is damaged"),
        (b"\x80\x02}K\x01K\x02s.", "the whole should be a dict with texts as keys"),
        (b"\x80\x02}X\x01\x00\x00\x00a}K\x01K\x02ss.", "a should be a dict with texts as keys"),
        (b"\x80\x02K\x00Q.", "asks for a persistent id"),
    ],
)
def test_what_makes_no_sense_is_an_error(tmp_path: Path, pickled: bytes, complaint: str):
    assert complaint in refusal(tmp_path, pickled)


@pytest.mark.faults
def test_what_is_no_file_is_an_error(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for name, complaint in {"none": "No such file", "pipe": "not a file", "": "not a file"}.items():
        with pytest.raises(PickleError, match=f"cannot be read: {complaint}"):
            with open_pickle(tmp_path / name):
                pass


@pytest.mark.faults
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(1))
    with pytest.raises(PickleError, match="nowhere: cannot be written"):
        with open_pickle(tmp_path / "file.pkl", scratch=tmp_path / "nowhere"):
            pass


@pytest.mark.faults
def test_a_process_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(reader, "SECONDS", 0)
    assert "not read after 0 seconds" in refusal(tmp_path, pickle.dumps(1))
