"""Files that want code to be run: see `hostile.py`."""

import builtins
import codecs
import copyreg
import functools
import importlib
import operator
import os
import pickle
import runpy
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from tests.networks.edm.published import tiny as tiny_edm
from tests.networks.edm2.published import snapshot, tiny
from tests.networks.published import _reconstruct_persistent_obj, persistent
from tests.pickles.hostile import (
    Call,
    code,
    dumps,
    hostile,
    named,
    opcodes,
    saved,
    saved_storage,
    touch,
    with_storage,
    with_weight,
)

# --- functions by name --------------------------------------------------------------------


@hostile("asks for 'posix.system'", live=True)
def os_system(canary: Path) -> bytes:
    return dumps({"ema": Call(os.system, touch(canary))}, 2)


@hostile("asks for 'os.system'", live=True)
def os_system_by_its_other_name(canary: Path) -> bytes:
    return opcodes(named("os system"), touch(canary), pickle.TUPLE1, b"R.")


@hostile("asks for 'posix.system'", live=True)
def os_system_deep_in_a_network(canary: Path) -> bytes:
    made = tiny()
    made.unet.out_conv.kernel = Call(os.system, touch(canary))
    return dumps(snapshot(made), 5)


@hostile("asks for 'posix.system'", live=True)
def os_system_deep_in_a_network_of_edms(canary: Path) -> bytes:
    made = tiny_edm()
    made.model.enc["8x8_block0"].skip_scale = Call(os.system, touch(canary))
    return dumps({"ema": made}, 2)


@hostile("asks for 'builtins.eval'", live=True)
def eval_in_the_augment_pipe(canary: Path) -> bytes:
    pipe = persistent("AugmentPipe", p=Call(eval, code(canary)))
    return dumps({"ema": tiny_edm(), "augment_pipe": pipe}, 5)


@hostile("asks for 'subprocess.Popen'", live=True)
def subprocess_in_the_encoder(canary: Path) -> bytes:
    return dumps(snapshot(tiny(), Call(subprocess.Popen, ["touch", str(canary)])))


@hostile("asks for '__builtin__.eval'", live=True)
def builtins_eval(canary: Path) -> bytes:
    return dumps(Call(eval, code(canary)), 2)


@hostile("asks for 'builtins.exec'", live=True)
def builtins_exec(canary: Path) -> bytes:
    return dumps(Call(exec, code(canary)))


@hostile("asks for 'builtins.compile'")
def builtins_compile(canary: Path) -> bytes:
    return dumps(Call(compile, code(canary), "network", "exec"))


@hostile("asks for 'builtins.open'", live=True)
def builtins_open(canary: Path) -> bytes:
    return opcodes(named("builtins open"), pickle.MARK, str(canary), "w", b"tR.")


@hostile("asks for 'builtins.getattr'", live=True)
def a_chain_of_getattr(canary: Path) -> bytes:
    module = Call(importlib.import_module, "os")
    return dumps(Call(Call(getattr, module, "system"), touch(canary)))


@hostile("asks for 'builtins.getattr'", live=True)
def getattr_on_what_is_allowed(canary: Path) -> bytes:
    names = Call(getattr, torch._utils._rebuild_parameter, "__globals__")
    system = Call(getattr, Call(getattr, Call(operator.itemgetter("torch"), names), "os"), "system")
    return dumps(Call(system, touch(canary)))


@hostile("asks for 'builtins.__import__'")
def builtins_import(canary: Path) -> bytes:
    return dumps({"ema": Call(builtins.__import__, "antigravity")})


@hostile("asks for 'torch.serialization.os.system'", live=True)
def a_dotted_name(canary: Path) -> bytes:
    asked = ("torch.serialization", "os.system", pickle.STACK_GLOBAL)
    return opcodes(*asked, touch(canary), pickle.TUPLE1, b"R.")


@hostile("asks for 'torch_utils.persistence._reconstruct_persistent_obj.__globals__'")
def a_dotted_name_that_begins_as_an_allowed_one(canary: Path) -> bytes:
    asked = ("torch_utils.persistence", "_reconstruct_persistent_obj.__globals__")
    return opcodes(*asked, pickle.STACK_GLOBAL, b".")


@hostile("asks for 'functools.partial'", live=True)
def functools_partial(canary: Path) -> bytes:
    return dumps(Call(functools.partial(os.system, touch(canary))))


@hostile("asks for 'operator.methodcaller'", live=True)
def operator_methodcaller(canary: Path) -> bytes:
    return dumps(Call(operator.methodcaller("touch"), canary))


@hostile("asks for 'runpy.run_path'", live=True)
def runpy_on_a_file_beside(canary: Path) -> bytes:
    script = canary.with_suffix(".py")
    script.write_text(code(canary))
    return dumps(Call(runpy.run_path, str(script)))


@hostile("asks for '_pickle.loads'", live=True)
def a_pickle_in_a_pickle(canary: Path) -> bytes:
    return dumps(Call(pickle.loads, dumps(Call(os.system, touch(canary)))))


@hostile("asks for 'numpy.load'")
def numpy_load(canary: Path) -> bytes:
    return dumps(Call(np.load, str(canary), None, True))


@hostile("asks for 'dnnlib.util.call_func_by_name'")
def the_familys_own_caller(canary: Path) -> bytes:
    return opcodes(named("dnnlib.util call_func_by_name"), touch(canary), "os.system", b"\x86R.")


@hostile("asks for 'torch_utils.persistence._import_hooks'")
def the_familys_own_hooks(canary: Path) -> bytes:
    return opcodes(named("torch_utils.persistence _import_hooks"), b".")


@hostile("asks for 'torch.nn.modules.linear.Linear'")
def a_module_of_another_kind(canary: Path) -> bytes:
    made = tiny()
    made.unet.out_conv = torch.nn.Linear(2, 2)
    return dumps({"ema": made})


# --- opcodes ------------------------------------------------------------------------------


@hostile("asks for 'os.system'", live=True)
def inst(canary: Path) -> bytes:
    return opcodes(pickle.MARK, touch(canary), b"ios\nsystem\n.")


@hostile("asks for 'subprocess.Popen'", live=True)
def obj(canary: Path) -> bytes:
    words = (pickle.EMPTY_LIST, pickle.MARK, "touch", str(canary), pickle.APPENDS)
    return opcodes(pickle.MARK, named("subprocess Popen"), *words, b"o.")


@hostile("unregistered extension code")
def an_extension(canary: Path) -> bytes:
    return opcodes(pickle.EXT1 + b"\x07", touch(canary), pickle.TUPLE1, b"R.")


@hostile("asks for a persistent id")
def a_persistent_id(canary: Path) -> bytes:
    return opcodes(b"}", "ema", "storage", pickle.BINPERSID, b"s.")


@hostile("out-of-band data")
def a_buffer_out_of_band(canary: Path) -> bytes:
    return opcodes(pickle.NEXT_BUFFER, b".")


# --- __setstate__ -------------------------------------------------------------------------


@hostile("the file is damaged")
def state_for_a_function(canary: Path) -> bytes:
    function = named("torch_utils.persistence _reconstruct_persistent_obj")
    return opcodes(function, b"}", "__code__", touch(canary), b"sb.")


@hostile("asks for 'types.SimpleNamespace'")
def state_for_an_object(canary: Path) -> bytes:
    return dumps({"ema": SimpleNamespace(__setstate__=touch(canary))})


@hostile("asks for 'copyreg._reconstructor'")
def an_object_of_before_protocol_2(canary: Path) -> bytes:
    return dumps({"ema": Call(copyreg._reconstructor, dict, dict, {"class_name": "Precond"})})


@hostile("enc should be an object of a persistent class")
def a_module_that_is_none(canary: Path) -> bytes:
    made = tiny()
    made.unet._modules["enc"] = touch(canary)
    return dumps({"ema": made})


@hostile("its state should be a dict")
def state_that_is_none(canary: Path) -> bytes:
    meta = {"type": "class", "class_name": "Precond", "module_src": code(canary), "state": 7}
    return dumps({"ema": Call(_reconstruct_persistent_obj, meta)})


# --- storages -----------------------------------------------------------------------------


@hostile(": asks for 'posix.system'", live=True)
def a_pickle_in_a_storage(canary: Path) -> bytes:
    return with_storage(saved(Call(os.system, touch(canary))))


@hostile("should be a storage as torch.save writes it", live=True)
def a_zip_archive_in_a_storage(canary: Path) -> bytes:
    return with_storage(saved(Call(os.system, touch(canary)), zipped=True))


@hostile(": asks for '__builtin__.eval'", live=True)
def code_behind_a_good_storage(canary: Path) -> bytes:
    good, evil = saved_storage(), dumps(Call(eval, code(canary)), 2)
    keys = good.index(b"\x80\x02]q")
    return with_storage(good[:keys] + evil + good[keys:])


@hostile(": asks for 'torch.storage._load_from_bytes'", live=True)
def a_storage_in_a_storage(canary: Path) -> bytes:
    inner = Call(torch.storage._load_from_bytes, saved(Call(os.system, touch(canary))))
    return with_storage(saved(inner))


@hostile(": asks for '__builtin__.bytearray'")
def what_torchs_restricted_loader_would_call(canary: Path) -> bytes:
    return with_storage(saved(Call(bytearray, 10**12)))


@hostile("asks for 'torch._utils._rebuild_device_tensor_from_numpy'")
def a_tensor_of_another_kind(canary: Path) -> bytes:
    rebuild = torch._utils._rebuild_device_tensor_from_numpy
    return with_weight(Call(rebuild, np.zeros(2), torch.float32, "cpu", False))


@hostile("should be a storage as torch.save writes it")
def bytes_by_way_of_another_codec(canary: Path) -> bytes:
    return with_storage(Call(codecs.encode, "x" * 100, "zip_codec"))


@hostile("channel_mult should be a list of numbers")
def an_array_of_objects(canary: Path) -> bytes:
    array = np.empty(2, dtype=object)
    array[:] = 1
    return dumps({"ema": tiny(channel_mult=array)})
