"""Reading pickles: plain data comes out as it went in, everything else as a record of itself."""

import collections
import functools
import io
import os
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sid_scale.pickles.opcodes import PickleError, Span
from sid_scale.pickles.reader import Global, Record, read_pickle

PROTOCOLS = [2, 3, 4, 5]
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**127), 2**127 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), inner)
    ),
    max_leaves=20,
)


def read(pickled: bytes, *allowed: str) -> Any:
    return read_pickle(io.BytesIO(pickled), "file.pkl", allowed)


def refusal(pickled: bytes, *allowed: str) -> str:
    with pytest.raises(PickleError) as caught:
        read(pickled, *allowed)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(deadline=None)  # how long it takes is not the point
@given(value=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_data_comes_out_as_it_went_in(value: Any, protocol: int):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_bytes_come_out_and_long_ones_stay_in_the_file(protocol: int):
    short, long = bytes(range(256)), bytes(range(256)) * 100
    read_short, read_long = read(pickle.dumps([short, long], protocol))
    assert read_short == short
    assert isinstance(read_long, Span)
    assert not read_long.is_text
    assert read_long.read() == long


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_long_texts_stay_in_the_file(protocol: int):
    text = "äh, " * 1000
    (span,) = read(pickle.dumps([text], protocol))
    assert span.is_text
    assert span.read().decode() == text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_same_object_twice_is_one(protocol: int):
    inner: list[int] = []
    first, second = read(pickle.dumps([inner, inner], protocol))
    assert first is second


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_call_is_a_record_of_name_and_arguments(protocol: int):
    record = read(
        pickle.dumps(functools.partial(os.stat, "/"), protocol), "functools.partial", "posix.stat"
    )
    assert isinstance(record, Record)
    assert record.kind == "functools.partial"
    assert [argument.name for argument in record.arguments] == ["posix.stat"]
    assert isinstance(record.arguments[0], Global)
    assert record.state[1] == ("/",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_dict_of_another_kind_is_a_record_with_entries(protocol: int):
    ordered = collections.OrderedDict(a=1, b=[2])
    record = read(pickle.dumps(ordered, protocol), "collections.OrderedDict")
    assert (record.kind, record.arguments, record.entries) == (
        "collections.OrderedDict",
        (),
        {"a": 1, "b": [2]},
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_sets_are_records_with_their_members(protocol: int):
    record = read(pickle.dumps({"a"}, protocol), "builtins.set")
    assert record.kind == "builtins.set"
    assert (record.items or record.arguments[0]) == ["a"]


def test_pickles_that_follow_each_other_are_read_in_turn():
    file = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps({"a": 2}, 4) + b"rest")
    assert read_pickle(file, "file.pkl", ()) == [1]
    assert read_pickle(file, "file.pkl", ()) == {"a": 2}
    assert file.read() == b"rest"


def test_old_homes_of_a_thing_count_as_the_new_ones():
    for module in (b"numpy._core", b"numpy.core"):
        pickled = b"\x80\x02c" + module + b".multiarray\nscalar\n."
        assert read(pickled, "numpy.core.multiarray.scalar").name == "numpy.core.multiarray.scalar"


@pytest.mark.faults
def test_a_refusal_says_what_was_asked_for_and_where():
    prefix = b"\x80\x04]\x94"
    message = refusal(prefix + pickle.dumps(os.system, 2)[2:], "posix.stat")
    assert message.startswith(f"file.pkl: byte {len(prefix)}: asks for 'posix.system'")
    in_four = pickle.dumps(os.system, 4)
    at = in_four.index(pickle.STACK_GLOBAL)
    assert refusal(in_four).startswith(f"file.pkl: byte {at}: asks for 'posix.system'")


@pytest.mark.faults
def test_a_reader_may_set_a_lower_limit_of_opcodes():
    pickled = pickle.dumps([None] * 5, 2)  # 10 opcodes after the header
    assert read_pickle(io.BytesIO(pickled), "file.pkl", (), 10) == [None] * 5
    with pytest.raises(PickleError, match="more than 9 opcodes"):
        read_pickle(io.BytesIO(pickled), "file.pkl", (), 9)


@pytest.mark.faults
def test_a_refused_name_cannot_speak_to_the_terminal():
    pickled = b"\x80\x04\x8c\x02os\x8c\x06\x1b[2J\n!\x93."
    assert r"asks for 'os.\x1b[2J\n!'" in refusal(pickled)


@pytest.mark.faults
def test_every_cut_is_noticed():
    whole = pickle.dumps({"a": [1.5, "b" * 2000, b"c" * 2000, 2**70, ("d",)]}, 4)
    assert read(whole)
    for length in range(len(whole)):
        assert "fetch" in refusal(whole[:length])


@pytest.mark.faults
@pytest.mark.parametrize(
    ("pickled", "complaint"),
    [
        (pickle.dumps([1], 1), "no pickle of protocol 2 to 5"),
        (b"\x80\x06].", "no pickle of protocol 2 to 5"),
        (b"\x80\x02a.", "byte 2: APPEND makes no sense"),
        (b"\x80\x02}]a.", "byte 4: APPEND makes no sense"),
        (b"\x80\x02}K\x01K\x02s.", "byte 7: SETITEM makes no sense"),
        (b"\x80\x02}(K\x01u.", "byte 6: SETITEMS makes no sense"),
        (b"\x80\x02h\x07.", "byte 2: BINGET makes no sense"),
        (b"\x80\x02)R.", "byte 3: REDUCE makes no sense"),
        (b"\x80\x02]}b.", "byte 4: BUILD makes no sense"),
        (b"\x80\x02]].", "byte 4: STOP makes no sense"),
        (b"\x80\x02I7\n.", "byte 2: opcode INT is none that"),
        (b"\x80\x02\xff.", "byte 2: opcode b'\\xff' is none that"),
        (b"\x80\x02K\x00Q.", "byte 4: asks for a persistent id"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "byte 2: a text that is none"),
    ],
)
def test_what_makes_no_sense_is_said_with_its_place(pickled: bytes, complaint: str):
    assert complaint in refusal(pickled)
