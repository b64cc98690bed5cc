"""In diffusers a generator makes the images that it makes without."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils import dynamic_modules_utils

from sid_scale import OneStepGenerator
from sid_scale.errors import SidScaleError
from sid_scale.generators.diffusers_pipeline import OneStepNetwork, OneStepPipeline
from sid_scale.generators.folder import GeneratorError
from tests.conftest import ROOT
from tests.generators.tiny import demo_generator, save_generator, tiny_generator
from tests.hub_server import Hub, files_of
from tests.tiny import ARCHITECTURE, tiny_folder

CLASSES, SEEDS = [0, 1, 2, 0], [5, 0, 7, 123456789]


@pytest.fixture(scope="module", autouse=True)
def modules(tmp_path_factory):
    """Where diffusers copies the files that it runs; other tests' processes have theirs."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("modules")
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", [*sys.path])
        yield


def load(folder: Path | str, **options: Any) -> Any:
    options = {"custom_pipeline": "pipeline", "trust_remote_code": True, **options}
    return DiffusionPipeline.from_pretrained(folder, **options)


def unconditional_generator(folder: Path) -> Path:
    """Makes 8x8 pixels without classes."""
    architecture = dataclasses.replace(ARCHITECTURE, label_dim=0)
    return save_generator(folder, tiny_folder(architecture=architecture), steps=2)


@pytest.fixture(scope="module")
def latent(tmp_path_factory) -> Path:
    return demo_generator(tmp_path_factory.mktemp("latent") / "generator")


@pytest.fixture(scope="module")
def pixel(tmp_path_factory) -> Path:
    return tiny_generator(tmp_path_factory.mktemp("pixel") / "generator")


@pytest.fixture(scope="module")
def pipe(pixel: Path) -> Any:
    return load(OneStepGenerator.from_pretrained(pixel).to_diffusers(pixel.with_name("d")))


def bits(images: list[Any]) -> torch.Tensor:
    """PIL images as uint8 (N, 3, H, W)."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_the_images_are_the_same_bit_for_bit(kind: str, tmp_path: Path, request):
    generator = OneStepGenerator.from_pretrained(request.getfixturevalue(kind))
    expected = generator.generate(CLASSES, SEEDS)
    pipe = load(generator.to_diffusers(tmp_path / "d"))
    output = pipe(class_labels=CLASSES, seeds=SEEDS)
    assert isinstance(output, ImagePipelineOutput)
    assert torch.equal(bits(output.images), expected)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    assert torch.equal(bits(pipe(CLASSES, generators).images), expected)
    few = generator.generate(CLASSES, SEEDS, steps=2)
    assert torch.equal(bits(pipe(CLASSES, seeds=SEEDS, num_inference_steps=2).images), few)


def test_the_folder_is_still_a_generators(latent: Path, tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(latent)
    folder = generator.to_diffusers(tmp_path / "d")
    again = OneStepGenerator.from_pretrained(folder)
    assert torch.equal(again.generate(CLASSES, SEEDS), generator.generate(CLASSES, SEEDS))


@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_what_a_pipeline_saves_makes_the_same_images(kind: str, tmp_path: Path, request):
    generator = OneStepGenerator.from_pretrained(request.getfixturevalue(kind))
    expected = generator.generate(CLASSES, SEEDS)
    load(generator.to_diffusers(tmp_path / "d")).save_pretrained(tmp_path / "saved")
    shutil.rmtree(tmp_path / "d")
    pipe = load(tmp_path / "saved", custom_pipeline=str(tmp_path / "saved"))
    assert torch.equal(bits(pipe(CLASSES, seeds=SEEDS).images), expected)
    part = OneStepGenerator.from_pretrained(tmp_path / "saved" / "generator")
    assert torch.equal(part.generate(CLASSES, SEEDS), expected)


def test_a_pipeline_is_not_saved_as_a_pickle(pipe, tmp_path: Path):
    with pytest.raises(GeneratorError, match="pickle"):
        pipe.save_pretrained(tmp_path / "saved", safe_serialization=False)


def test_a_dtype_is_what_the_network_computes_in_and_goes_back_without_loss(pixel: Path, tmp_path):
    generator = OneStepGenerator.from_pretrained(pixel)
    folder = generator.to_diffusers(tmp_path / "d")
    half = OneStepGenerator.from_pretrained(pixel, dtype=torch.bfloat16)
    expected = half.sample_latents(CLASSES, SEEDS)
    asked = {"seeds": SEEDS, "output_type": "latent"}
    pipe = load(folder, torch_dtype=torch.bfloat16)
    assert pipe.dtype == torch.bfloat16
    assert torch.equal(pipe(CLASSES, **asked).images, expected)
    pipe.to("cpu", torch.float32)
    assert torch.equal(pipe(CLASSES, **asked).images, generator.sample_latents(CLASSES, SEEDS))
    assert torch.equal(pipe.to(torch.bfloat16)(CLASSES, **asked).images, expected)
    pipe.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")(CLASSES, **asked).images
    assert torch.equal(again, generator.sample_latents(CLASSES, SEEDS))


def test_a_vae_that_is_given_takes_the_place_of_the_folders(latent: Path, tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(latent)
    folder = generator.to_diffusers(tmp_path / "d")
    vae = load(folder).vae
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    images = load(folder, vae=vae)(CLASSES, seeds=SEEDS).images
    assert bits(images).float().mean() > generator.generate(CLASSES, SEEDS).float().mean() + 20


@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_a_name_on_the_hub_serves_as_well(kind: str, hub: Hub, tmp_path: Path, request):
    generator = OneStepGenerator.from_pretrained(request.getfixturevalue(kind))
    hub.model("ada/digits", files_of(generator.to_diffusers(tmp_path / "d")))
    expected = generator.generate(CLASSES, SEEDS)
    for pipeline in ("pipeline", "ada/digits"):
        pipe = load("ada/digits", custom_pipeline=pipeline)
        assert torch.equal(bits(pipe(CLASSES, seeds=SEEDS).images), expected)
    network = OneStepNetwork.from_pretrained("ada/digits", revision="main")
    pipe = OneStepPipeline.from_pretrained("ada/digits", generator=network)
    assert torch.equal(bits(pipe(CLASSES, seeds=SEEDS).images), expected)
    again = OneStepGenerator.from_pretrained("ada/digits")
    assert torch.equal(again.generate(CLASSES, SEEDS), expected)


@pytest.mark.parametrize("kind", ["latent", "pixel"])
def test_it_loads_without_trust_where_the_classes_are_named(kind: str, tmp_path: Path, request):
    generator = OneStepGenerator.from_pretrained(request.getfixturevalue(kind))
    folder = generator.to_diffusers(tmp_path / "d")
    for name in ("pipeline.py", "generator/sid_scale.generators.diffusers_pipeline.py"):
        (folder / name).write_text("raise AssertionError\n")
    pipe = OneStepPipeline.from_pretrained(folder, generator=OneStepNetwork.from_pretrained(folder))
    assert torch.equal(bits(pipe(CLASSES, seeds=SEEDS).images), generator.generate(CLASSES, SEEDS))


def test_outputs_are_those_of_other_pipelines(pixel: Path, pipe):
    expected = OneStepGenerator.from_pretrained(pixel).generate(CLASSES, SEEDS)
    arrays = pipe(CLASSES, seeds=SEEDS, output_type="np").images
    assert (arrays.dtype, arrays.shape) == (np.float32, (4, 8, 8, 3))
    tensor, *rest = pipe(CLASSES, seeds=SEEDS, output_type="pt", return_dict=False)
    assert rest == []
    assert torch.equal((tensor * 255).round().to(torch.uint8), expected)
    assert np.array_equal(arrays, tensor.permute(0, 2, 3, 1).numpy())
    assert len(pipe(2, seeds=3).images) == 1


def test_a_generator_gives_other_images_each_time_and_the_same_from_its_seed(pipe):
    def images(generator: torch.Generator | None) -> torch.Tensor:
        return pipe([1, 1], generator, output_type="pt").images

    generator = torch.Generator().manual_seed(3)
    first, second = images(generator), images(generator)
    assert torch.equal(first[:1], pipe(1, seeds=3, output_type="pt").images)
    assert len({tuple(image.flatten().tolist()) for image in (*first, *second)}) == 4
    assert torch.equal(images(torch.Generator().manual_seed(3)), first)
    torch.manual_seed(3)
    assert torch.equal(images(None), first)


def test_without_classes_a_number_of_images_is_asked_for(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(unconditional_generator(tmp_path / "g"))
    pipe = load(generator.to_diffusers(tmp_path / "d"))
    assert torch.equal(bits(pipe(seeds=SEEDS).images), generator.generate(None, SEEDS))
    assert len(pipe(batch_size=3, generator=torch.Generator().manual_seed(0)).images) == 3
    assert len(pipe().images) == 1
    with pytest.raises(GeneratorError, match="batch_size is 3, but there are 4 seeds"):
        pipe(batch_size=3, seeds=SEEDS)
    with pytest.raises(GeneratorError, match="knows no classes"):
        pipe(1)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "class_labels are missing: the generator knows 4 classes"),
        ({"class_labels": [0, 4]}, "class 4 is not one"),
        ({"class_labels": 1.5}, "class_labels: a list is wanted, not 1.5"),
        ({"class_labels": ["cat"]}, "class_labels: integers are wanted"),
        ({"class_labels": [0], "seeds": [1, 2]}, "1 class_labels and 2 seeds"),
        ({"class_labels": [0], "seeds": -1}, "seed -1 is not in 0"),
        ({"class_labels": [0], "generator": 1}, "generator: .* numbers go to seeds"),
        ({"class_labels": 0, "seeds": 1, "generator": torch.Generator()}, "leave one out"),
        ({"class_labels": 0, "num_inference_steps": 0}, "steps 0: a generator takes one or more"),
        ({"class_labels": 0, "batch_size": "a"}, "batch_size 'a' is no number of images"),
        ({"class_labels": 0, "batch_size": 1.0}, "batch_size 1.0 is no number"),
        ({"class_labels": 0, "batch_size": 0}, "batch_size 0 is no number"),
        ({"class_labels": 0, "output_type": "jpg"}, "output_type 'jpg' is none of"),
    ],
)
def test_what_cannot_be_made_is_told(pipe, asked: dict[str, Any], message: str):
    with pytest.raises(GeneratorError, match=message):
        pipe(**asked)


@pytest.mark.faults
def test_what_cannot_be_loaded_is_told(pixel: Path, latent: Path, tmp_path: Path):
    folder = OneStepGenerator.from_pretrained(pixel).to_diffusers(tmp_path / "d")
    with pytest.raises(GeneratorError, match=r"dtype torch\.float64 is none of float32, bf"):
        load(folder, torch_dtype=torch.float64)
    with pytest.raises(GeneratorError, match=r"dtype torch\.int8 is none of"):
        load(folder).to(torch.int8)
    (folder / "model.safetensors").unlink()
    with pytest.raises(SidScaleError, match=r"no model\.safetensors there"):
        load(folder)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load(folder, trust_remote_code=False)


@pytest.mark.faults
def test_where_no_network_is_what_was_given_is_named(
    pixel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "empty").mkdir()
    for here in (tmp_path, pixel):  # the second would do, but was not asked for
        monkeypatch.chdir(here)
        with pytest.raises(SidScaleError, match=r"^missing: nothing is there"):
            OneStepNetwork.from_pretrained("missing")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SidScaleError, match=r"^empty: no config\.json there"):
        OneStepNetwork.from_pretrained("empty")


def test_importing_a_generator_does_not_import_diffusers():
    code = (
        "import sys; from sid_scale import OneStepGenerator; sys.exit('diffusers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
