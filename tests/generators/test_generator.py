"""A generator at work: a sample depends on its class and seed, and on nothing beside it."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sid_scale import OneStepGenerator
from sid_scale.codecs import CodecError
from sid_scale.demo.digits import RESOLUTION
from sid_scale.demo.prepare import TEACHER
from sid_scale.generators.folder import GeneratorError
from sid_scale.hub.names import HubError
from sid_scale.networks.edm2.architecture import EDM2Architecture
from sid_scale.networks.folder import load_network
from tests.generators.tiny import demo_generator, edit_description, save_generator, tiny_generator
from tests.tiny import tiny_folder

CLASSES, SEEDS = [0, 1, 2, 3, 0, 1, 2], [5, 0, 7, 5, 123456789, 2, 3]

# Of this size and larger, plain forwards differ between one thread and two.
THREADS_MATTER = EDM2Architecture(
    img_resolution=16,
    img_channels=3,
    label_dim=4,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(8,),
    channels_per_head=32,
    logvar_channels=0,
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> OneStepGenerator:
    folder = demo_generator(tmp_path_factory.mktemp("demo") / "generator")
    return OneStepGenerator.from_pretrained(folder)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("steps", [1, 2])
def test_company_does_not_change_a_bit_of_a_sample(demo, steps: int):
    latents = demo.sample_latents(CLASSES, SEEDS, steps)
    images = demo.generate(CLASSES, SEEDS, steps)
    assert images.dtype == torch.uint8
    assert images.shape == (7, 3, RESOLUTION, RESOLUTION)
    for i in (0, 4, 6):
        assert torch.equal(
            demo.sample_latents(CLASSES[i : i + 1], SEEDS[i : i + 1], steps)[0], latents[i]
        )
        assert torch.equal(demo.generate(CLASSES[i : i + 1], SEEDS[i : i + 1], steps)[0], images[i])
    backwards = demo.sample_latents(CLASSES[::-1], SEEDS[::-1], steps)
    assert torch.equal(backwards.flip(0), latents)


def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path, threads):
    network = tiny_folder(architecture=THREADS_MATTER)
    generator = OneStepGenerator.from_pretrained(save_generator(tmp_path / "g", network))
    samples = []
    for count in (1, 2, 3):
        threads(count)
        samples.append(generator.sample_latents(CLASSES, SEEDS))
        assert torch.get_num_threads() == count  # as it was
    assert torch.equal(samples[0], samples[1])
    assert torch.equal(samples[0], samples[2])


def test_samples_are_the_networks_own(demo):
    """Noise from the seed alone, at init_sigma, denoised once; a batch gives the same but for
    rounding."""
    latents = demo.sample_latents([3, 4], [8, 9])
    again = demo.sample_latents([4, 4], [8, 9])
    assert torch.equal(latents[1], again[1])
    assert not torch.equal(latents[0], again[0])
    network = load_network(TEACHER).build()
    seen = []
    hook = demo.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    demo.sample_latents([3], [8])
    hook.remove()
    [(x, sigma, condition)] = seen
    assert sigma.tolist() == [1.0]
    assert condition.tolist() == [3]
    assert x.std() == pytest.approx(1.0, abs=0.2)
    x, condition = x.expand(5, -1, -1, -1), condition.expand(5)
    batch = network(x.contiguous(), sigma, condition).denoised
    torch.testing.assert_close(batch[:1], latents[:1], rtol=1e-4, atol=1e-4)


def test_steps_are_those_that_it_was_trained_for_unless_others_are_asked(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "g", steps=2))
    own = generator.sample_latents([1], [1])
    assert torch.equal(own, generator.sample_latents([1], [1], steps=2))
    for steps in (1, 3, 4):
        assert not torch.equal(own, generator.sample_latents([1], [1], steps=steps))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.01)])
def test_half_precision_stays_near(tmp_path: Path, dtype: torch.dtype, tolerance: float):
    folder = tiny_generator(tmp_path / "g")
    exact = OneStepGenerator.from_pretrained(folder).sample_latents(CLASSES, SEEDS)
    half = OneStepGenerator.from_pretrained(folder, dtype=dtype)
    assert half.network.unet.out_conv.weight.dtype == dtype
    assert (half.sample_latents(CLASSES, SEEDS) - exact).abs().mean() < tolerance * exact.std()
    assert half.generate(CLASSES, SEEDS).shape == (7, 3, 8, 8)


def test_numbers_may_come_as_tensors_arrays_and_ranges(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "g")).to("cpu")
    images = generator.generate([0, 1, 2], range(3))
    assert torch.equal(images, generator.generate(torch.arange(3), np.arange(3)))


@pytest.mark.parametrize(
    ("classes", "seeds", "steps", "message"),
    [
        ([1, 2], [0], None, "2 class_labels and 1 seeds"),
        ([], [], None, "nothing to make"),
        ([4], [0], None, "class 4 is not one of the generator's 4"),
        ([-1], [0], None, "class -1"),
        ([0], [-1], None, "seed -1 is not in 0 to"),
        ([0], [2**32], None, "seed 4294967296 is not in"),
        ([0], [0], 0, "steps 0"),
        ([0], [0], 1.5, "steps: integers are wanted"),
        ([0.0], [0], None, "class_labels: integers are wanted"),
        (["cat"], [0], None, "class_labels: integers are wanted"),
        (3, 0, None, "class_labels: integers are wanted, not 3"),
    ],
)
def test_what_cannot_be_made_is_told(tmp_path: Path, classes, seeds, steps, message: str):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "g"))
    for make in (generator.generate, generator.sample_latents):
        with pytest.raises(GeneratorError, match=message):
            make(classes, seeds, steps)


@pytest.mark.faults
def test_a_teacher_is_no_generator():
    with pytest.raises(GeneratorError, match="names no init_sigma"):
        OneStepGenerator.from_pretrained(TEACHER)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("provenance", "message"),
    [
        ({"init_sigma": 2.5, "kind": "fake_score"}, "a fake_score, not a generator"),
        ({"init_sigma": "2.5"}, "init_sigma is '2.5'"),
        ({"init_sigma": float("nan")}, "init_sigma is nan"),
        ({"init_sigma": 10**400}, "init_sigma is 1000000"),
        ({"init_sigma": 2.5, "steps": 0}, "steps is 0"),
        ({"init_sigma": 2.5, "steps": True}, "steps is True"),
    ],
)
def test_nonsense_in_its_description_is_told(tmp_path: Path, provenance, message: str):
    folder = tiny_generator(tmp_path / "g")
    edit_description(folder, provenance=provenance)
    with pytest.raises(GeneratorError, match=message):
        OneStepGenerator.from_pretrained(folder)


@pytest.mark.faults
def test_a_dtype_that_it_does_not_compute_in(tmp_path: Path):
    with pytest.raises(GeneratorError, match="float32, bfloat16, float16"):
        OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "g"), dtype=torch.int8)


# --- the VAE ------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_missing_vae_is_needed_for_images_alone_and_may_be_named(tmp_path: Path):
    folder = demo_generator(tmp_path / "g")
    shutil.move(folder / "vae", tmp_path / "elsewhere")
    generator = OneStepGenerator.from_pretrained(folder)
    latents = generator.sample_latents([1], [1])
    with pytest.raises(
        CodecError, match=r"/g/vae: no config\.json there.*own folder as vae/.*--vae"
    ):
        generator.generate([1], [1])
    named = OneStepGenerator.from_pretrained(folder, vae=tmp_path / "elsewhere")
    assert torch.equal(named.codec.decode(latents), named.generate([1], [1]))
    with pytest.raises(HubError, match="nowhere: nothing is there"):
        OneStepGenerator.from_pretrained(folder, vae=tmp_path / "nowhere")


@pytest.mark.faults
@pytest.mark.parametrize("file", ["diffusion_pytorch_model.safetensors", "config.json"])
def test_a_damaged_vae_is_named(tmp_path: Path, file: str):
    folder = demo_generator(tmp_path / "g")
    damaged = folder / "vae" / file
    damaged.write_bytes(damaged.read_bytes()[:-50])
    with pytest.raises(CodecError, match="/g/vae is damaged or none"):
        OneStepGenerator.from_pretrained(folder).generate([1], [1])


def test_seeds_that_a_keyed_hash_would_confuse_make_different_images(tmp_path: Path):
    generator = OneStepGenerator.from_pretrained(tiny_generator(tmp_path / "g"))
    first, second = generator.sample_latents([0, 0], [23111, 60735])
    assert not torch.equal(first, second)


@pytest.mark.faults
def test_a_codec_that_does_not_fit_is_told(tmp_path: Path):
    folder = demo_generator(tmp_path / "g")
    codec, channels = load_network(folder).codec, load_network(folder).architecture.img_channels
    edit_description(folder, codec={**codec, "scale": [0.5] * 9})
    with pytest.raises(CodecError, match=f"latents have {channels} channels, its codec 9 v"):
        OneStepGenerator.from_pretrained(folder)
    edit_description(folder, codec={"kind": "identity"})
    with pytest.raises(CodecError, match=f"makes {channels} channels"):
        OneStepGenerator.from_pretrained(folder).generate([0], [0])
    with pytest.raises(CodecError, match="without a VAE"):
        OneStepGenerator.from_pretrained(folder, vae=tmp_path)


def test_importing_the_package_is_light_and_the_generator_needs_no_deepspeed():
    code = (
        "import sys, sid_scale; assert 'torch' not in sys.modules\n"
        "sid_scale.OneStepGenerator; assert 'torch' in sys.modules\n"
        "assert not {'deepspeed', 'diffusers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError):
        from sid_scale import TwoStepGenerator  # noqa: F401
