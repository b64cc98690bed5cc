"""The presets of GDD and GDD-I carry the published settings, and EDM2's what is chosen for them."""

from typing import NamedTuple

import pytest
import torch

from sid_scale.config.run import load_config
from sid_scale.methods import GENERATOR, build_method
from sid_scale.methods.freezing import frozen_weights
from sid_scale.methods.gdd import DISCRIMINATOR
from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.networks.edm2.sizes import imagenet512
from sid_scale.zero.settings import read_deepspeed_json

VGG, LITE, DEIT = "vgg16_bn", "tf_efficientnet_lite0", "deit_base_distilled_patch16_224"
GPUS = 4  # of the published runs


class Row(NamedTuple):
    """The published runs of one teacher."""

    teacher: str
    networks: tuple[str, str]
    batch: int
    learning_rate: float
    of_discriminator: float
    half_life: int  # of the average, thousands of images
    millions: int  # of images
    frozen: float  # share of the weights, percent


PUBLISHED = {
    "cifar10-uncond": Row("cifar10-32x32-uncond-ve", (VGG, LITE), 256, 1e-4, 1e-4, 500, 5, 84.4),
    "cifar10-cond": Row("cifar10-32x32-cond-ve", (VGG, LITE), 256, 1e-4, 1e-4, 500, 5, 84.4),
    "ffhq64": Row("ffhq-64x64-uncond-ve", (DEIT, LITE), 256, 2e-5, 4e-5, 500, 10, 83.8),
    "afhqv2": Row("afhqv2-64x64-uncond-ve", (DEIT, LITE), 256, 2e-5, 4e-5, 500, 10, 83.8),
    "imagenet64": Row("imagenet-64x64-cond-adm", (DEIT, LITE), 512, 8e-6, 4e-5, 50_000, 10, 78.8),
}
METHODS = {"gdd": "gdd", "gdd-i": "gdd_i"}
every_run = pytest.mark.parametrize("data", PUBLISHED)
every_method = pytest.mark.parametrize("method", METHODS)


@every_run
@every_method
def test_settings_are_the_published_ones(data: str, method: str):
    row, config = PUBLISHED[data], load_config(f"edm-{data}-{method}")
    assert config.method == METHODS[method]
    assert config.teacher == f"teachers/edm-{row.teacher}"
    assert config.data == f"data/{data.removesuffix('-uncond').removesuffix('-cond')}"
    assert (config.batch_size, config.micro_batch) == (row.batch, row.batch // GPUS)
    assert config.total_images == row.millions * 1_000_000
    assert config.learning_rate.generator == row.learning_rate
    assert config.learning_rate.ramp_down_images == 0
    assert (config.adam.betas, config.adam.generator_betas) == ((0.0, 0.99), None)
    assert config.adam.eps == 1e-8
    assert (config.ema.half_life, config.ema.ramp_up) == (1000 * row.half_life, 0.05)
    assert (config.init_sigma, config.steps, config.dropout) == (80, 1, 0)
    assert not config.forced_weight_norm
    assert read_deepspeed_json(config.deepspeed, 1, 1).compute_dtype == torch.bfloat16
    assert read_deepspeed_json(config.deepspeed, 1, 1).clipping == 0


@every_run
@every_method
def test_losses_are_the_published_ones(data: str, method: str):
    row, objective = PUBLISHED[data], load_config(f"edm-{data}-{method}").objective
    assert objective.feature_networks == {
        name: f"features/{name}.safetensors" for name in row.networks
    }
    assert objective.teacher_sigma is None
    assert objective.loss == "non_saturating"
    assert objective.summed_images == row.batch // GPUS
    assert (objective.r1_gamma, objective.r1_interval) == (1e-4, 16)
    discriminator = objective.discriminator
    assert discriminator.learning_rate == row.of_discriminator
    assert (discriminator.width, discriminator.projection_width) == (64, 64)
    assert discriminator.embedding == 320


@every_run
@every_method
def test_methods_can_be_built_for_their_teachers(data: str, method: str):
    row, config = PUBLISHED[data], load_config(f"edm-{data}-{method}")
    teacher = TEACHERS[row.teacher]
    roles = {role.name: role for role in build_method(config, teacher).roles()}
    assert roles[DISCRIMINATOR].learning_rate == pytest.approx(row.of_discriminator * 16 / 17)
    assert roles[DISCRIMINATOR].betas == pytest.approx((0, 0.99 ** (16 / 17)))
    generator = roles[GENERATOR]
    with torch.device("meta"):
        network = generator.architecture(teacher).build()
    frozen = sum(network.get_parameter(n).numel() for n in frozen_weights(generator, network))
    share = 100 * frozen / sum(p.numel() for p in network.parameters())
    assert share == pytest.approx(row.frozen if method == "gdd-i" else 0, abs=0.05)


@pytest.mark.parametrize("size", ["xs", "s", "m", "l", "xl", "xxl"])
@every_method
def test_latents_are_looked_at_through_the_teacher(size: str, method: str):
    config = load_config(f"edm2-img512-{size}-{method}")
    sida = load_config(f"edm2-img512-{size}-sida")
    assert config.method == METHODS[method]
    assert config.teacher == sida.teacher
    assert (config.init_sigma, config.forced_weight_norm) == (2.5, sida.forced_weight_norm)
    assert config.objective.feature_networks == {}
    assert config.objective.teacher_sigma == 0.1
    assert config.objective.summed_images == config.micro_batch
    assert config.batch_size % config.micro_batch == 0
    assert build_method(config, imagenet512(size)).uses_teacher


def test_each_run_has_a_folder_of_its_own():
    names = [f"edm-{data}-{method}" for data in PUBLISHED for method in METHODS]
    folders = {load_config(name).run_dir for name in names}
    assert folders == {f"runs/{name}" for name in names}
