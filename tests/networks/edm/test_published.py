"""EDM's, DDO's, SiD's and SiDA's files become network folders: same weights, same outputs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sid_scale.networks.edm.architecture import EDMArchitecture
from sid_scale.networks.folder import load_network
from sid_scale.networks.published import import_published, read_published
from sid_scale.pickles.reader import PickleError
from tests.networks.edm.published import (
    ALL,
    DDPMPP,
    published,
    random_state,
    settings_of,
    snapshot,
    tiny,
)
from tests.networks.published import persistent, read, refusal, write
from tests.vectors import Vectors, relative_error

PROTOCOLS = [2, 3, 4, 5]
VECTORS = (
    *("edm_songunet_ddpmpp", "edm_songunet_ddpmpp_cond", "edm_songunet_ncsnpp"),
    *("edm_songunet_ncsnpp_cond", "edm_dhariwal", "edm_dhariwal_uncond"),
)
SIDA = "EDMPrecond_EncoderDecoder"


def assert_same_weights(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name


def reference_network(vectors: Vectors, class_name: str) -> nn.Module:
    """The vectors' network as published, with the arguments that the vectors name."""
    return published(vectors.config, vectors.state("state."), class_name, **vectors.settings)


# --- the published outputs ----------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.parametrize(("name", "protocol"), [*zip(VECTORS, [4, 2, 3, 5, 2, 4])])
def test_an_imported_teacher_computes_the_published_numbers(
    reference_dir: Path, tmp_path: Path, name: str, protocol: int
):
    vectors = Vectors(reference_dir / f"{name}.npz")
    contents = snapshot(reference_network(vectors, "EDMPrecond"))
    import_published(write(tmp_path / "teacher.pkl", contents, protocol), tmp_path / "teacher")
    folder = load_network(tmp_path / "teacher")
    assert folder.provenance["kind"] == "teacher"
    assert folder.codec == {"kind": "identity"}
    inputs = [vectors["x"], vectors["sigma"]]
    if vectors.config.label_dim:
        inputs.append(vectors.classes("class_labels"))
    denoised = folder.build()(*inputs).denoised
    assert relative_error(denoised, vectors["denoised"]) < 1e-5


@pytest.mark.reference
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ["edm_songunet_ddpmpp_cond", "edm_dhariwal"])
@pytest.mark.parametrize("class_name", ["EDMPrecond", SIDA])
def test_an_imported_generator_computes_the_published_numbers(
    reference_dir: Path, tmp_path: Path, name: str, class_name: str, protocol: int
):
    vectors = Vectors(reference_dir / f"{name}.npz")
    contents = {"ema": reference_network(vectors, class_name)}
    import_published(write(tmp_path / "g.pkl", contents, protocol), tmp_path / "generator")
    generator = load_network(tmp_path / "generator")
    assert generator.provenance["kind"] == "generator"
    assert generator.provenance["init_sigma"] == 2.5
    classes = vectors.classes("class_labels")
    denoised = generator.build()(vectors["x"], vectors["sigma"], classes).denoised
    assert relative_error(denoised, vectors["denoised"]) < 1e-5


# --- weights and architecture -------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("architecture", ALL.values(), ids=ALL.keys())
def test_weights_and_buffers_keep_every_bit(
    tmp_path: Path, architecture: EDMArchitecture, protocol: int
):
    source = write(tmp_path / "net.pkl", snapshot(tiny("EDMPrecond", architecture)), protocol)
    network = read_published(source)
    assert network.architecture == architecture
    assert_same_weights(network.state, random_state(architecture))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_keep_their_dtype(tmp_path: Path, dtype: torch.dtype):
    state = {name: tensor.to(dtype) for name, tensor in random_state(DDPMPP).items()}
    network = published(DDPMPP, state, **settings_of(DDPMPP))
    assert_same_weights(read(tmp_path, network).state, state)


def test_a_file_of_before_numpy_2_is_the_same(tmp_path: Path):
    source = write(tmp_path / "net.pkl", snapshot(tiny(dropout=np.float64(0.13))), 2)
    renamed = source.read_bytes().replace(b"cnumpy._core.", b"cnumpy.core.")
    assert renamed != source.read_bytes()
    source.write_bytes(renamed)
    assert read_published(source).architecture == DDPMPP


def test_a_filter_is_there_only_where_the_resolution_changes(tmp_path: Path):
    names = read(tmp_path, tiny()).state.keys()
    filters = [name for name in names if name.endswith("resample_filter")]
    assert sorted(filters) == [
        *("model.dec.8x8_up.conv0.resample_filter", "model.dec.8x8_up.skip.resample_filter"),
        *("model.enc.4x4_down.conv0.resample_filter", "model.enc.4x4_down.skip.resample_filter"),
    ]


# --- teachers and generators --------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "others", "kind"),
    [
        ("EDMPrecond", {"dataset_kwargs": {}}, "teacher"),
        ("EDMPrecond", {"loss_fn": persistent("EDMLoss"), "augment_pipe": None}, "teacher"),
        ("EDMPrecond", {}, "generator"),
        (SIDA, {}, "generator"),
        (SIDA, {"dataset_kwargs": {}}, "generator"),
    ],
)
def test_class_and_company_tell_teachers_from_generators(tmp_path, class_name, others, kind):
    assert read(tmp_path, tiny(class_name), **others).kind == kind


@pytest.mark.parametrize(
    "name", ["edm-cifar10-32x32-uncond-vp.pkl", "edm-cifar10-uncond-vp-ddo.pkl"]
)
def test_a_file_of_a_published_teachers_name_is_a_teacher_though_alone(tmp_path: Path, name: str):
    assert read_published(write(tmp_path / name, {"ema": tiny()})).kind == "teacher"


@pytest.mark.faults
@pytest.mark.parametrize("class_name", ["VPPrecond", "VEPrecond", "iDDPMPrecond"])
def test_other_preconditioning_is_refused_with_what_to_take_instead(tmp_path, class_name):
    message = refusal(tmp_path, tiny(class_name), loss_fn=persistent("VPLoss"))
    assert f"ema is of class {class_name}, whose preconditioning is not EDM's" in message
    assert "edm-*.pkl" in message


@pytest.mark.faults
def test_a_u_net_that_is_none_is_refused(tmp_path: Path):
    network = published(DDPMPP, random_state(DDPMPP), unet="FNO", **settings_of(DDPMPP))
    known = "model is of class FNO; known are SongUNet, DhariwalUNet"
    assert known in refusal(tmp_path, network)
    del network._modules["model"]
    assert "model should be an object of a persistent class" in refusal(tmp_path, network)


@pytest.mark.faults
def test_weights_of_another_architecture_are_listed_with_their_shapes(tmp_path: Path):
    message = refusal(tmp_path, tiny(model_channels=16))
    weight = "model.enc.8x8_conv.weight has shape [8, 3, 3, 3], not [16, 3, 3, 3]"
    assert weight in message
    network = tiny()
    del network.model.enc["8x8_block0"].conv1
    assert "missing model.enc.8x8_block0.conv1.weight" in refusal(tmp_path, network)


def test_four_channels_are_pixels_all_the_same(tmp_path: Path):
    assert read(tmp_path, tiny(architecture=replace(DDPMPP, img_channels=4))).codec == {
        "kind": "identity"
    }


@pytest.mark.faults
def test_a_vae_for_pixels_is_a_mistake(tmp_path: Path):
    source = write(tmp_path / "net.pkl", snapshot(tiny()))
    with pytest.raises(PickleError, match="there is no use for VAE /models/vae"):
        read_published(source, vae="/models/vae")
