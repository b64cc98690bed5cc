"""EDM2's and SiD's files become network folders: same weights, same outputs, nothing run."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sid_scale.networks.edm2.architecture import from_edm2_shapes, to_edm2_shapes
from sid_scale.networks.folder import load_network
from sid_scale.networks.published import (
    GeneratorSettings,
    import_published,
    read_published,
)
from sid_scale.pickles.reader import PickleError
from tests.networks.edm2.published import STATE, published, snapshot, tiny
from tests.networks.published import Persistent, persistent, read, refusal, write
from tests.tiny import ARCHITECTURE
from tests.vectors import Vectors, relative_error

PROTOCOLS = [2, 3, 4, 5]
DTYPES = [torch.float32, torch.float16]
HEADLESS = {name: tensor for name, tensor in STATE.items() if not name.startswith("logvar")}


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


# --- the published outputs ----------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_imported_teacher_computes_the_published_numbers(reference_dir, tmp_path, protocol):
    vectors = Vectors(reference_dir / "edm2_forward.npz")
    network = published(vectors.config, vectors.state("param."), **vectors.settings)
    source = write(tmp_path / "teacher.pkl", snapshot(network), protocol)
    import_published(source, tmp_path / "teacher")

    teacher = load_network(tmp_path / "teacher").build()
    inputs = vectors["x"], vectors["sigma"], vectors.classes("class_labels")
    prediction = teacher(*inputs, features=(-1,))
    assert relative_error(prediction.denoised, vectors["denoised"]) < 1e-5
    assert (
        relative_error(prediction.features[0].mean(dim=1, keepdim=True), vectors["encoder_mean"])
        < 1e-5
    )
    assert relative_error(prediction.logvar.flatten(), vectors["logvar"]) < 1e-5
    unlabelled = teacher(*inputs[:2]).denoised
    assert relative_error(unlabelled, vectors["denoised_no_label"]) < 1e-5


@pytest.mark.reference
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("class_name", ["EDM_2_Precond_EncoderDecoder", "EDM_2_Precond_Generator"])
def test_an_imported_generator_computes_the_published_numbers(
    reference_dir, tmp_path, protocol, class_name
):
    vectors = Vectors(reference_dir / "edm2_forward.npz")
    state = {k: v for k, v in vectors.state("param.").items() if not k.startswith("logvar")}
    network = published(vectors.config, state, class_name, **vectors.settings)
    import_published(write(tmp_path / "g.pkl", {"ema": network}, protocol), tmp_path / "generator")

    generator = load_network(tmp_path / "generator").build()
    prediction = generator(vectors["x"], vectors["sigma"], vectors.classes("class_labels"))
    assert relative_error(prediction.denoised, vectors["denoised"]) < 1e-5
    assert prediction.logvar is None


@pytest.mark.reference
def test_float16_weights_of_the_vectors_stay_near_the_published_numbers(reference_dir, tmp_path):
    vectors = Vectors(reference_dir / "edm2_forward.npz")
    halves = {name: tensor.half() for name, tensor in vectors.state("param.").items()}
    network = published(vectors.config, halves, **vectors.settings)
    import_published(write(tmp_path / "teacher.pkl", snapshot(network)), tmp_path / "teacher")
    teacher = load_network(tmp_path / "teacher").build()
    denoised = teacher(vectors["x"], vectors["sigma"], vectors.classes("class_labels")).denoised
    assert relative_error(denoised, vectors["denoised"]) < 5e-3


# --- weights ------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
@pytest.mark.parametrize("state", [STATE, HEADLESS], ids=["head", "headless"])
def test_weights_keep_every_bit(tmp_path, protocol, dtype, state):
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    source = write(tmp_path / "net.pkl", snapshot(tiny(state=state)), protocol)
    assert_same_weights(read_published(source).state, state)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_holds_the_file_bit_by_bit_also_the_second_time(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in STATE.items()}
    import_published(write(tmp_path / "a.pkl", snapshot(tiny(state=state))), tmp_path / "a")
    weights = load_file(tmp_path / "a" / "model.safetensors")
    assert_same_weights(weights, to_edm2_shapes(state))
    again = tiny(state=from_edm2_shapes(weights))
    import_published(write(tmp_path / "b.pkl", snapshot(again)), tmp_path / "b")
    assert_same_weights(load_file(tmp_path / "b" / "model.safetensors"), weights)


def test_a_folder_of_float16_stays_so_and_builds_networks_of_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in STATE.items()}
    import_published(write(tmp_path / "net.pkl", snapshot(tiny(state=halves))), tmp_path / "net")
    loaded = load_network(tmp_path / "net")
    assert_same_weights(loaded.state, halves)
    assert {p.dtype for p in loaded.build().parameters()} == {torch.float32}


def test_parts_of_larger_storages_and_transposed_ones_are_read(tmp_path):
    name = "unet.emb_noise.weight"
    weight = STATE[name]
    inside = torch.zeros(weight.shape[1] + 3, weight.shape[0] + 2)
    inside[2:-1, 1:-1] = weight.T
    state = {**STATE, name: inside[2:-1, 1:-1].T}
    assert_same_weights(read(tmp_path, tiny(state=state)).state, STATE)


def test_buffers_that_are_not_persistent_are_left_out(tmp_path):
    network = tiny()
    network.unet.register_buffer("cache", torch.zeros(3), persistent=False)
    assert_same_weights(read(tmp_path, network).state, STATE)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_attributes_that_nobody_reads_may_be_of_harmless_kinds(tmp_path, protocol):
    network = tiny()
    network.dtypes = [torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]
    network.raw = bytearray(b"raw")
    network.nothing = nn.Identity()
    network.unet.out_conv.weight.note = "a parameter with an attribute of its own"
    assert_same_weights(
        read_published(write(tmp_path / "net.pkl", snapshot(network), protocol)).state, STATE
    )


@pytest.mark.parametrize("protocol", [4, 5])  # before, pickle cannot write it
def test_a_memory_format_may_be_an_attribute(tmp_path, protocol):
    network = tiny()
    network.memory_format = torch.channels_last
    assert_same_weights(
        read_published(write(tmp_path / "net.pkl", snapshot(network), protocol)).state, STATE
    )


def test_a_file_of_before_numpy_2_is_the_same(tmp_path):
    network = tiny(label_dim=np.int64(4), sigma_data=np.float64(0.5))
    source = write(tmp_path / "net.pkl", snapshot(network), 2)
    renamed = source.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
    assert renamed != source.read_bytes()
    source.write_bytes(renamed)
    assert read_published(source).architecture == ARCHITECTURE


def test_nothing_in_the_file_is_compiled(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w')\n"
    monkeypatch.setattr(Persistent, "module_source", source)
    import_published(write(tmp_path / "a.pkl", snapshot(tiny())), tmp_path / "a")
    monkeypatch.setattr(Persistent, "module_source", source * 1000)
    import_published(write(tmp_path / "b.pkl", snapshot(tiny())), tmp_path / "b")
    assert canary.name.encode() in (tmp_path / "a.pkl").read_bytes()
    assert not canary.exists()


@pytest.mark.faults
def test_weights_of_another_architecture_are_listed_with_their_shapes(tmp_path):
    network = tiny(model_channels=32, channel_mult=[1, 1])
    message = refusal(tmp_path, network)
    assert "unet.emb_fourier.freqs has shape [16], not [32]" in message
    assert "unet.enc.8x8_conv.weight has shape [16, 4, 3, 3], not [32, 4, 3, 3]" in message


@pytest.mark.faults
def test_missing_and_unknown_weights_are_listed(tmp_path):
    network = tiny()
    del network.unet.out_conv
    network.unet.extra = network.unet.emb_noise  # a module in two places
    message = refusal(tmp_path, network)
    assert "missing unet.out_conv.weight" in message
    assert "unknown unet.extra.weight" in message
    network.unet.extra = persistent("MPConv", base=nn.Module)
    network.unet.extra.weight = nn.Parameter(torch.zeros(2))
    message = refusal(tmp_path, network)
    assert "missing unet.out_conv.weight" in message
    assert "unknown unet.extra.weight" in message


@pytest.mark.faults
def test_half_an_uncertainty_head_is_none(tmp_path):
    network = tiny()
    del network.logvar_linear
    assert "missing logvar_linear.weight" in refusal(tmp_path, network)


@pytest.mark.faults
def test_other_dtypes_are_refused(tmp_path):
    doubles = {name: tensor.double() for name, tensor in STATE.items()}
    assert "unet.out_gain is of dtype F64" in refusal(tmp_path, tiny(state=doubles))


# --- what else a file holds ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "state", "others", "kind"),
    [
        ("Precond", STATE, {"dataset_kwargs": {}}, "teacher"),
        ("Precond", STATE, {"encoder": persistent("StandardRGBEncoder")}, "teacher"),
        ("Precond", STATE, {}, "generator"),
        ("Precond", HEADLESS, {"dataset_kwargs": {}}, "generator"),
        ("EDM_2_Precond_EncoderDecoder", STATE, {"dataset_kwargs": {}}, "generator"),
        ("EDM_2_Precond_Generator", HEADLESS, {}, "generator"),
    ],
)
def test_class_head_and_company_tell_teachers_from_generators(
    tmp_path, class_name, state, others, kind
):
    network = read(tmp_path, tiny(class_name, state), **others)
    assert network.kind == kind
    assert bool(network.architecture.logvar_channels) == (state is STATE)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("contents", "complaint"),
    [
        ({"net": 1, "G": 2}, "no network under 'ema'; it holds 'net', 'G'"),
        ({}, "no network under 'ema'; it holds nothing"),
        ([1], "the whole should be a dict"),
        ({"ema": None}, "ema should be an object of a persistent class"),
        ({"ema": persistent("SongUNet")}, "ema is of class SongUNet; known are Precond"),
        ({"ema": persistent("Precond")}, "_parameters should be a dict"),
        ({"ema": nn.ModuleDict()}, "ema is of class torch.nn.modules.container.ModuleDict"),
    ],
)
def test_files_of_something_else(tmp_path, contents, complaint):
    source = write(tmp_path / "net.pkl", contents)
    with pytest.raises(PickleError) as caught:
        read_published(source)
    assert complaint in str(caught.value)


# --- folders ------------------------------------------------------------------------------


def provenance(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["provenance"]


def test_a_teacher_says_where_it_comes_from(tmp_path):
    import_published(write(tmp_path / "net.pkl", snapshot(tiny())), tmp_path / "net")
    said = provenance(tmp_path / "net")
    assert len(said.pop("source_sha256")) == 64
    assert said == {"kind": "teacher", "source": "net.pkl"}


def test_a_generator_says_how_it_generates(tmp_path):
    source = write(tmp_path / "net.pkl", {"ema": tiny("EDM_2_Precond_Generator")})
    import_published(source, tmp_path / "as-published")
    said = provenance(tmp_path / "as-published")
    assert (said["kind"], said["init_sigma"], said["steps"]) == ("generator", 2.5, 1)
    import_published(source, tmp_path / "other", generator=GeneratorSettings(1.5, 4, "sida"))
    said = provenance(tmp_path / "other")
    assert (said["method"], said["init_sigma"], said["steps"]) == ("sida", 1.5, 4)


def test_the_kind_can_be_said(tmp_path):
    source = write(tmp_path / "net.pkl", snapshot(tiny()))
    settings = GeneratorSettings(method="sid")
    with pytest.raises(PickleError, match="seems to be a teacher"):
        import_published(source, tmp_path / "net", generator=settings)
    import_published(source, tmp_path / "net", generator=settings, kind="generator")
    assert provenance(tmp_path / "net")["method"] == "sid"


@pytest.mark.faults
def test_a_folder_that_exists_is_left_alone(tmp_path):
    source = write(tmp_path / "net.pkl", snapshot(tiny()))
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "thesis.tex").write_text("years of work")
    with pytest.raises(PickleError, match="exists already"):
        import_published(source, tmp_path / "net")
    assert (tmp_path / "net" / "thesis.tex").read_text() == "years of work"


@pytest.mark.faults
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PickleError, match=r"none\.pkl: cannot be read: No such file"):
        read_published(tmp_path / "none.pkl")
