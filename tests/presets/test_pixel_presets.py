"""The presets of EDM's pixel teachers carry the published settings, data set by data set."""

from dataclasses import dataclass

import pytest
import torch

from sid_scale.config.run import load_config, preset_names
from sid_scale.methods import GENERATOR, build_method
from sid_scale.methods.sid import FAKE_SCORE
from sid_scale.networks.edm.sizes import TEACHERS
from sid_scale.zero.settings import read_deepspeed_json

METHODS = ("sid", "sida", "sid2a")


@dataclass(frozen=True)
class Row:
    """The published runs of one teacher; tuples are of SiD, SiDA and SiD2A."""

    teacher: str
    alpha: float  # of SiD; SiDA's and SiD2A's is 1
    batch: int
    micro_batch: tuple[int, int, int]
    learning_rate: float
    float16: bool
    dropout: float
    augmentation: float
    millions: tuple[int, int, int]
    half_life: int = 500_000
    beta1: float = 0.0  # of SiD's generator


PUBLISHED = {
    "cifar10-uncond": Row(
        "cifar10-32x32-uncond-vp", 1.2, 256, (16, 32, 32), 1e-5, False, 0.13, 0.12, (500, 300, 100)
    ),
    "cifar10-cond": Row(
        "cifar10-32x32-cond-vp", 1.2, 256, (16, 32, 32), 1e-5, False, 0.13, 0.12, (800, 300, 100)
    ),
    "imagenet64": Row(
        "imagenet-64x64-cond-adm", 1.2, 8192, (16, 32, 32), 4e-6, True, 0.1, 0,
        (1000, 300, 100), half_life=2_000_000,
    ),
    "ffhq64": Row(
        "ffhq-64x64-uncond-vp", 1.2, 512, (32, 64, 64), 1e-5, True, 0.05, 0.15,
        (500, 200, 100), beta1=0.9,
    ),
    "afhqv2": Row(
        "afhqv2-64x64-uncond-vp", 1.0, 512, (32, 64, 64), 5e-6, True, 0.05, 0.15, (500, 200, 100)
    ),
}  # fmt: skip


def test_there_is_one_for_every_data_set_and_method():
    methods = (*METHODS, "gdd", "gdd-i")
    expected = {f"edm-{data}-{method}" for data in PUBLISHED for method in methods}
    assert {name for name in preset_names() if name.startswith("edm-")} == expected


@pytest.mark.parametrize("data", PUBLISHED)
@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_published_ones(data: str, method: str):
    row, config, at = PUBLISHED[data], load_config(f"edm-{data}-{method}"), METHODS.index(method)
    objective, adversarial = config.objective, method != "sid"
    assert config.method == method
    assert config.teacher == f"teachers/edm-{row.teacher}"
    assert (config.batch_size, config.micro_batch) == (row.batch, row.micro_batch[at])
    assert config.total_images == row.millions[at] * 1_000_000
    assert config.learning_rate.generator == row.learning_rate
    assert objective.fake_score.learning_rate == row.learning_rate
    assert config.learning_rate.ramp_down_images == 0
    assert (config.dropout, objective.augmentation) == (row.dropout, row.augmentation)
    assert objective.alpha == (1.0 if adversarial else row.alpha)
    assert (config.adam.betas, config.adam.eps) == ((0.0, 0.999), None)
    beta1 = 0.0 if adversarial else row.beta1
    assert (config.adam.generator_betas or config.adam.betas) == (beta1, 0.999)
    assert (config.ema.half_life, config.ema.ramp_up) == (row.half_life, 0.05)
    dtype = read_deepspeed_json(config.deepspeed, 1, 1).compute_dtype
    assert dtype == (torch.float16 if row.float16 else torch.float32)


@pytest.mark.parametrize("data", PUBLISHED)
@pytest.mark.parametrize("method", METHODS)
def test_what_all_published_runs_share(data: str, method: str):
    config = load_config(f"edm-{data}-{method}")
    objective, fake_score = config.objective, config.objective.fake_score
    assert not objective.logvar_weighting
    assert not config.forced_weight_norm
    assert not fake_score.forced_weight_norm
    assert (objective.tmax, config.init_sigma, config.steps) == (800, 2.5, 1)
    assert (fake_score.p_mean, fake_score.p_std) == (-1.2, 1.2)
    assert objective.loss_scale_generator == 100
    if method != "sid":
        assert objective.adversarial_group == config.micro_batch
        assert (objective.loss_scale_generator_gan, objective.loss_scale_discriminator) == (0.01, 1)
        assert objective.discriminator_logit_limit is None
        assert fake_score.clip_value == 1
        warm_up = objective.warm_up
        assert (warm_up.generator_images, warm_up.adversarial_images) == (10**5, 2 * 10**5)
        assert objective.sid_share == 0.5
    else:
        assert fake_score.clip_value is None


@pytest.mark.parametrize("data", PUBLISHED)
def test_what_a_preset_names_is_there_or_made_by_another(data: str):
    sid, sida, sid2a = (load_config(f"edm-{data}-{method}") for method in METHODS)
    assert len({config.run_dir for config in (sid, sida, sid2a)}) == 3
    assert (sid.data, sid.generator_init, sida.generator_init) == (None, None, None)
    assert sida.data == sid2a.data == f"data/{data.removesuffix('-uncond').removesuffix('-cond')}"
    assert sid2a.generator_init == f"{sid.run_dir}/generator"
    assert all(config.batch_size % config.micro_batch == 0 for config in (sid, sida, sid2a))


@pytest.mark.parametrize("data", PUBLISHED)
def test_methods_can_be_built_for_their_teachers(data: str):
    for method in METHODS:
        config = load_config(f"edm-{data}-{method}")
        roles = {r.name: r for r in build_method(config, TEACHERS[PUBLISHED[data].teacher]).roles()}
        assert roles[FAKE_SCORE].reads_real == (method != "sid")
        assert roles[FAKE_SCORE].clip_value == (None if method == "sid" else 1)
        of_its_own = (data, method) == ("ffhq64", "sid")
        assert roles[GENERATOR].betas == ((0.9, 0.999) if of_its_own else None)
