"""Files that are endless, bottomless or broken: see `hostile.py`."""

import codecs
import dataclasses
import gzip
import pickle
import random
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sid_scale.networks.edm2.network import EDM2
from tests.networks.edm.published import snapshot
from tests.networks.edm.published import tiny as tiny_edm
from tests.networks.edm2.published import published, settings_of, tiny
from tests.networks.published import persistent
from tests.pickles.hostile import (
    ELEMENTS,
    STRIDE,
    Call,
    dumps,
    hostile,
    opcodes,
    saved,
    saved_storage,
    tensor_of,
    with_storage,
    with_weight,
)
from tests.tiny import ARCHITECTURE

TERA = 10**12


def length(count: int, layout: str = "<Q") -> bytes:
    return struct.pack(layout, count)


# --- false lengths ------------------------------------------------------------------------


@hostile("to read, far more than a network of its size")
def endless_bytes(_: Path) -> bytes:
    return opcodes(pickle.BINBYTES8, length(2**62), b"x" * 100)


@hostile("exceeds system's maximum size")
def endless_text(_: Path) -> bytes:
    return opcodes(pickle.BINUNICODE8, length(2**63), b"x" * 100)


@hostile("to read, far more than a network of its size")
def an_endless_bytearray(_: Path) -> bytes:
    return opcodes(pickle.BYTEARRAY8, length(TERA), b"x" * 100)


@hostile("to read, far more than a network of its size")
def an_endless_frame(_: Path) -> bytes:
    return opcodes(pickle.FRAME, length(2**60), b"}.")


@hostile("to read, far more than a network of its size")
def an_endless_integer(_: Path) -> bytes:
    return opcodes(pickle.LONG4, length(2**31 - 1, "<I"), b"x" * 100)


@hostile("negative byte count")
def an_integer_of_negative_length(_: Path) -> bytes:
    return opcodes(pickle.LONG4, length(-1 % 2**32, "<I"), b"x" * 100)


@hostile("the whole is an integer of 159999999 bits")
def an_integer_of_millions_of_digits(_: Path) -> bytes:
    return opcodes(pickle.LONG4, length(20_000_000, "<I"), b"\x7f" * 20_000_000, b".")


@hostile("the file is damaged")
def an_integer_of_millions_of_decimals(_: Path) -> bytes:
    return opcodes(pickle.LONG, b"9" * 20_000_000, b"L\n.")


@hostile("the file ends in the middle")
def an_endless_name(_: Path) -> bytes:
    return opcodes(pickle.GLOBAL, b"x" * 20_000_000)


@hostile("to read, far more than a network of its size")
def a_memo_of_two_billion_places(_: Path) -> bytes:
    return opcodes(pickle.EMPTY_LIST, pickle.LONG_BINPUT, length(2**31 - 1, "<I"), b".")


# --- few bytes, much made of them ---------------------------------------------------------


def doubled(times: int) -> list[Any]:
    """2**times lists, written down as `times`."""
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


@hostile("ema holds itself, or values too deep in it")
def lists_that_double(_: Path) -> bytes:
    return dumps({"ema": doubled(200)})


@hostile("attn_resolutions holds itself, or values too deep in it")
def lists_that_double_in_a_setting(_: Path) -> bytes:
    return dumps({"ema": tiny(attn_resolutions=doubled(200))})


@hostile("to read, far more than a network of its size")
def millions_of_lists(_: Path) -> bytes:
    return opcodes(pickle.EMPTY_LIST * 20_000_000, b".")


@hostile("to read, far more than a network of its size")
def millions_of_sets(_: Path) -> bytes:
    return opcodes(pickle.EMPTY_SET * 20_000_000, b".")


@hostile("ema should be a dict with texts as keys")
def keys_of_one_hash(_: Path) -> bytes:
    return dumps({"ema": {n * (2**61 - 1): None for n in range(1000)}})


@hostile("seconds of CPU time to read, far more than a network of its size")
def a_hundred_thousand_keys_of_one_hash(_: Path) -> bytes:
    numbers = (pickle.encode_long(n * (2**61 - 1)) for n in range(100_000))
    entries = [pickle.LONG1 + bytes([len(n)]) + n + pickle.NONE for n in numbers]
    return opcodes(b"}(", *entries, b"u.")


@hostile("bytes, but tensors of")
def a_storage_in_several_uses(_: Path) -> bytes:
    contents = b"\x07" * 1_000_000
    arrays = [np.frombuffer(contents, dtype).__reduce__() for dtype in ("f8", "i8", "u1")]
    held = [Call(rebuild, *parts, state=(*state[:4], contents)) for rebuild, parts, state in arrays]
    return dumps({"ema": tiny(), "held": held})


@hostile("bytes of settings")
def a_text_in_many_places(_: Path) -> bytes:
    return dumps({"ema": tiny(), "held": ["x" * 1000] * 20_000})


@hostile("to read, far more than a network of its size")
def a_text_of_a_terabyte(_: Path) -> bytes:
    return opcodes(b"}", "ema", pickle.BINUNICODE8, length(2**40), b"x" * 100)


@hostile("bytes, but weights of")
def one_storage_for_all_weights(_: Path) -> bytes:
    architecture = dataclasses.replace(ARCHITECTURE, num_blocks=32)
    state = EDM2(architecture).state_dict()
    made = published(architecture, state, **settings_of(architecture))
    contents = saved_storage(max(weight.numel() for weight in state.values()))
    for module in made.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = tensor_of(contents, weight.shape, weight.stride())
    return dumps({"ema": made})


@hostile("out_conv.weight wants more than its storage's 1 elements")
def a_weight_of_one_element_spread_out(_: Path) -> bytes:
    return with_storage(saved_storage(1), stride=(0, 0, 0, 0))


@hostile("should be a storage as torch.save writes it")
def a_storage_that_says_to_be_large(_: Path) -> bytes:
    small = saved_storage(1000)
    return with_storage(small.replace(b"M\xe8\x03Nt", b"\x8a\x06" + length(TERA)[:6] + b"Nt"))


@hostile("asks for a persistent id")
def a_large_storage_beside_the_small_one(_: Path) -> bytes:
    good = saved_storage()
    at = good.index(b"\x80\x02(X\x07\0\0\0storage") + 2
    end = good.index(pickle.BINPERSID, at)
    large = good[at:end].replace(b"M\xb0\x01", b"\x8a\x06" + length(TERA)[:6]) + pickle.BINPERSID
    return with_storage(good[:at] + large + good[at:])


@hostile("_buffers should be a dict")
def arguments_for_a_dict(_: Path) -> bytes:
    made = tiny()
    made._buffers = Call(OrderedDict, [["a", doubled(100)]])
    return dumps({"ema": made})


def modules_of_one_state(state: dict[str, Any]) -> bytes:
    """Thousands of modules, all of which hold the same things."""
    made = tiny()
    for number in range(5000):
        module = Call(torch.nn.ModuleDict, state={"_buffers": {}, "_modules": {}, **state})
        made.unet._modules[f"m{number}"] = module
    return dumps({"ema": made})


@hostile("more than 250000 values")
def modules_that_share_their_weights(_: Path) -> bytes:
    weight = tensor_of(saved_storage(1), (1,), (1,))
    return modules_of_one_state({"_parameters": {f"p{n}": weight for n in range(10_000)}})


@hostile("more than 250000 values")
def modules_that_share_places_for_weights(_: Path) -> bytes:
    return modules_of_one_state({"_parameters": {f"p{n}": None for n in range(20_000)}})


@hostile("more than 250000 values")
def modules_that_share_names_of_buffers(_: Path) -> bytes:
    names = Call(set, [f"b{n}" for n in range(20_000)])
    return modules_of_one_state({"_parameters": {}, "_non_persistent_buffers_set": names})


@hostile("the weights are not those of its architecture")
def many_buffers_and_many_names_of_others(_: Path) -> bytes:
    made, buffer = tiny(), tensor_of(saved_storage(1), (1,), (1,))
    made._buffers = {f"b{n}": buffer for n in range(100_000)}
    made._non_persistent_buffers_set = {f"c{n}" for n in range(100_000)}
    return dumps({"ema": made})


def padded(storage: bytes, padding: bytes) -> bytes:
    """A storage with something before the STOP of its first pickle."""
    stop = storage.index(pickle.STOP)
    return storage[:stop] + padding + storage[stop:]


@hostile("should be a storage as torch.save writes it")
def a_storage_with_an_endless_header(_: Path) -> bytes:
    return with_storage(padded(saved_storage(), b"q\xff" * 100_000))


@hostile("should be a storage as torch.save writes it")
def a_storage_with_opcodes_that_torch_does_not_know(_: Path) -> bytes:
    return with_storage(padded(saved_storage(), pickle.MEMOIZE))


@hostile("bytes, but weights of")
def a_large_storage_for_each_small_weight(_: Path) -> bytes:
    made, contents = tiny(), saved_storage(1_000_000)
    for module in made.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = tensor_of(contents, weight.shape, weight.stride())
    return dumps({"ema": made})


# --- depth --------------------------------------------------------------------------------


@hostile("ema holds itself, or values too deep in it")
def lists_in_lists(_: Path) -> bytes:
    return opcodes(b"}", "ema", pickle.EMPTY_LIST * 100_000, pickle.APPEND * 99_999, b"s.")


@hostile("crashes the process that reads it (exit status -11)")
def a_key_of_tuples_in_tuples(_: Path) -> bytes:
    return opcodes(b"})", pickle.TUPLE1 * 200_000, b"}s.")


@hostile("holds itself, or values too deep in it")
def a_module_in_itself(_: Path) -> bytes:
    inner = torch.nn.ModuleDict()
    inner._modules["again"] = inner
    made = tiny()
    made.unet._modules["enc"] = inner
    return dumps({"ema": made})


@hostile("values too deep in it")
def modules_in_modules(_: Path) -> bytes:
    inner = torch.nn.ModuleDict()
    for _depth in range(100):
        inner = torch.nn.ModuleDict({"x" * 60: inner})
    made = tiny()
    made.unet._modules["enc"] = inner
    return dumps({"ema": made})


@hostile("more than 250000 values")
def modules_that_double(_: Path) -> bytes:
    inner = torch.nn.ModuleDict()
    for _depth in range(15):
        inner = torch.nn.ModuleDict({"a": inner, "b": inner})
    made = tiny()
    made.unet._modules["enc"] = inner
    return dumps({"ema": made})


# --- impossible networks ------------------------------------------------------------------


@hostile("bytes, but weights of")
def one_storage_for_all_weights_of_edms(_: Path) -> bytes:
    made = tiny_edm()
    contents = saved_storage(max(weight.numel() for weight in made.parameters()))
    for module in made.modules():
        for name, weight in module._parameters.items():
            module._parameters[name] = tensor_of(contents, weight.shape, weight.stride())
    return dumps(snapshot(made))


@hostile("num_blocks is 1000000000")
def a_billion_blocks(_: Path) -> bytes:
    return dumps({"ema": tiny(num_blocks=10**9)})


@hostile("the weights are not those of its architecture")
def the_largest_network_that_settings_allow(_: Path) -> bytes:
    largest = {"model_channels": 16_384, "channel_mult": [64] * 8, "num_blocks": 32}
    return dumps({"ema": tiny(**largest, img_resolution=4096, channel_mult_noise=64)})


@hostile("the weights are not those of its architecture")
def the_largest_network_of_edms_that_settings_allow(_: Path) -> bytes:
    largest = {"model_channels": 16_384, "channel_mult": [64] * 8, "num_blocks": 32}
    wide = {"channel_mult_emb": 64, "channel_mult_noise": 64, "label_dim": 2**24}
    return dumps(snapshot(tiny_edm(**largest, **wide, img_resolution=2**14)))


@hostile("num_blocks and channel_mult make an encoder of 960 blocks")
def more_blocks_of_edms_than_can_be_built_soon(_: Path) -> bytes:
    return dumps(snapshot(tiny_edm(num_blocks=64, channel_mult=[1] * 15, img_resolution=2**14)))


@hostile("unet.out_conv.weight wants more than its storage's 432 elements")
def a_shape_beyond_all_memory(_: Path) -> bytes:
    return with_storage(saved_storage(), shape=(2**30,) * 4, stride=STRIDE)


@hostile("unet.out_conv.weight should be a tensor")
def a_negative_stride(_: Path) -> bytes:
    return with_storage(saved_storage(), offset=ELEMENTS - 1, stride=tuple(-n for n in STRIDE))


@hostile("unet.out_conv.weight should be a tensor")
def a_negative_offset(_: Path) -> bytes:
    return with_storage(saved_storage(), offset=-4096)


@hostile("unet.out_conv.weight wants more than its storage's 432 elements")
def a_weight_beyond_its_storage(_: Path) -> bytes:
    return with_storage(saved_storage(), offset=1)


@hostile("unet.out_conv.weight wants more than its storage's 432 elements")
def strides_beyond_the_storage(_: Path) -> bytes:
    return with_storage(saved_storage(), stride=(2**30,) * 4)


@hostile("unet.out_conv.weight should be a tensor")
def a_shape_of_texts(_: Path) -> bytes:
    return with_storage(saved_storage(), shape=tuple("abcd"))


@hostile("unet.out_conv.weight should be a tensor")
def a_weight_that_is_a_number(_: Path) -> bytes:
    return with_weight(7)


@hostile("label_dim should be a number")
def a_numpy_number_of_too_many_bytes(_: Path) -> bytes:
    scalar, (dtype, _bytes) = np.int64(4).__reduce__()
    return dumps({"ema": tiny(label_dim=Call(scalar, dtype, b"x" * 800))})


@hostile(r"holds '\x1b[2J', which is no name")
def a_name_for_the_terminal(_: Path) -> bytes:
    made = tiny()
    made.unet._modules["\x1b[2J"] = persistent("MPConv")
    return dumps({"ema": made})


# --- damage -------------------------------------------------------------------------------


@hostile("empty; fetch it again")
def nothing(_: Path) -> bytes:
    return b""


@hostile("no pickle of protocol 2 to 5")
def a_text(_: Path) -> bytes:
    return b"<html><title>404 Not Found</title></html>\n"


@hostile("no pickle of protocol 2 to 5")
def random_bytes(_: Path) -> bytes:
    return random.Random(0).randbytes(100_000)


@hostile("the file is damaged")
def random_bytes_behind_a_header(_: Path) -> bytes:
    return opcodes(random.Random(1).randbytes(100_000))


@hostile("no pickle of protocol 2 to 5")
def a_compressed_network(_: Path) -> bytes:
    return gzip.compress(dumps({"ema": tiny()}))


@hostile("a zip archive, as torch.save makes them")
def a_network_by_torch_save(_: Path) -> bytes:
    return saved({"ema": torch.zeros(2)}, zipped=True)


@hostile("the whole should be a dict")
def a_network_by_torch_save_of_before(_: Path) -> bytes:
    return saved({"ema": torch.zeros(2)})


@hostile("fetch")
def the_first_half(_: Path) -> bytes:
    whole = dumps({"ema": tiny()})
    return whole[: len(whole) // 2]


@hostile("the file ends in the middle")
def all_but_the_last_byte(_: Path) -> bytes:
    return dumps({"ema": tiny()})[:-1]


@hostile("should be a storage as torch.save writes it")
def a_storage_of_the_other_byte_order(_: Path) -> bytes:
    return with_storage(saved_storage().replace(b"endianq\x02\x88", b"endianq\x02\x89"))


@hostile("should be a storage as torch.save writes it")
def a_storage_that_ends_early(_: Path) -> bytes:
    return with_storage(saved_storage()[:-4])


@hostile("should be a storage as torch.save writes it")
def a_storage_of_characters_that_are_no_bytes(_: Path) -> bytes:
    return with_storage(Call(codecs.encode, "\u2192" * 2000, "latin1"))
