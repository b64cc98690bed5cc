"""The presets carry the published settings, size by size."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from sid_scale.cli import main
from sid_scale.config.groups import LearningRates
from sid_scale.config.run import load_config, preset_names
from sid_scale.methods import Method, Update, build_method
from sid_scale.networks.edm2.sizes import imagenet512
from sid_scale.presets import presets
from sid_scale.zero.settings import find_deepspeed_json

DIGITS = tuple(name for name in preset_names() if name.startswith("digits"))  # the demo's
SIZES = ("xs", "s", "m", "l", "xl", "xxl")
METHODS = ("sid", "sida", "sid2a")
PUBLISHED_MICRO_BATCH = dict(zip(SIZES, (64, 64, 32, 32, 16, 2)))
MICRO_BATCH = {**PUBLISHED_MICRO_BATCH, "xl": 32, "xxl": 32}  # what suits GPUs of 80 GB
MILLIONS = {
    "sid": dict(zip(SIZES, (200, 200, 200, 200, 200, 100))),
    "sida": dict(zip(SIZES, (200, 200, 200, 200, 200, 100))),
    "sid2a": dict(zip(SIZES, (30, 80, 200, 55, 50, 30))),
}
TEACHERS = dict(
    zip(
        SIZES,
        (
            "xs-2147483-0.135",
            "s-2147483-0.130",
            "m-2147483-0.100",
            "l-1879048-0.085",
            "xl-1342177-0.085",
            "xxl-0939524-0.070",
        ),
    )
)


def method_of(preset: str, *overrides: str) -> Method:
    return build_method(load_config(preset, overrides), imagenet512("xs"))


def roles_of(updates: Iterator[Update]) -> list[str]:
    return [update.role for update in updates]


def test_there_is_one_for_every_size_and_method():
    methods = (*METHODS, "gdd", "gdd-i")
    expected = {f"edm2-img512-{size}-{method}" for size in SIZES for method in methods}
    assert {name for name in preset_names() if name.startswith("edm2-")} == expected


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_published_ones(size: str, method: str):
    config = load_config(f"edm2-img512-{size}-{method}")
    assert config.method == method
    assert config.batch_size == 2048
    assert config.micro_batch == MICRO_BATCH[size]
    group = None if method == "sid" else PUBLISHED_MICRO_BATCH[size]
    assert config.objective.adversarial_group == group
    assert config.total_images == MILLIONS[method][size] * 1_000_000
    assert config.teacher.endswith(f"edm2-img512-{TEACHERS[size]}")
    assert config.dropout == (0.0 if size in ("xs", "s") else 0.1)
    assert (config.data is None) == (method == "sid")
    assert (config.generator_init is not None) == (method == "sid2a")
    plain = size == "s" and method != "sid"
    assert config.objective.logvar_weighting != plain
    assert config.forced_weight_norm != plain
    assert not config.objective.fake_score.forced_weight_norm
    halved = size == "m" and method == "sid2a"
    assert config.objective.loss_scale_generator == (50 if halved else 100)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_what_all_published_runs_share(size: str, method: str):
    config = load_config(f"edm2-img512-{size}-{method}")
    objective = config.objective
    assert config.learning_rate == LearningRates(5e-5, ramp_down_images=0)
    assert objective.fake_score.learning_rate == 5e-5
    assert (config.adam.betas, config.adam.eps) == ((0.0, 0.999), None)
    assert (objective.alpha, objective.tmax, config.init_sigma) == (1.0, 800, 2.5)
    assert (objective.fake_score.p_mean, objective.fake_score.p_std) == (-0.4, 1.0)
    assert objective.loss_scale_generator_gan == 0.01
    assert objective.loss_scale_discriminator == 100
    assert objective.sid_share == 0.5
    warm_up = objective.warm_up
    assert (warm_up.generator_images, warm_up.adversarial_images) == (10**5, 2 * 10**5)
    assert (config.ema.half_life, config.ema.ramp_up) == (2_000_000, 0.05)
    assert config.ema.relative_width is None
    assert config.steps == 1


@pytest.mark.parametrize("size", SIZES)
def test_what_a_preset_names_is_there_or_made_by_another(size: str):
    sid, sida, sid2a = (load_config(f"edm2-img512-{size}-{method}") for method in METHODS)
    assert len({config.run_dir for config in (sid, sida, sid2a)}) == 3
    assert sid2a.generator_init == f"{sid.run_dir}/generator"
    assert sid.teacher == sida.teacher == sid2a.teacher
    for config in (sid, sida, sid2a):
        assert find_deepspeed_json(config.deepspeed).name == "zero2.json"
        assert config.batch_size % config.micro_batch == 0


def test_the_list_tells_what_is_known_of_each():
    rows = {row.name: row for row in presets()}
    assert list(rows)[:3] == [f"edm-cifar10-uncond-{method}" for method in METHODS]
    assert list(rows)[25:28] == [f"edm2-img512-xs-{method}" for method in METHODS]
    assert set(rows) == set(preset_names())
    largest = rows["edm2-img512-xxl-sid2a"]
    assert (largest.data_set, round(largest.parameters)) == ("ImageNet 512x512", 1523)
    assert largest.method == "sid2a"
    assert (largest.batch_size, largest.total_images) == (2048, 30_000_000)
    assert largest.reported_fid == 1.366
    assert largest.teacher == "edm2-img512-xxl-0939524-0.070"
    digits = rows["digits"]
    assert digits.data_set is None
    assert digits.parameters is not None
    assert 0.1 < digits.parameters < 5
    for name, row in rows.items():  # what no source tells is not made up
        of_latents = name.startswith("edm2-") and row.method in ("sid", "gdd", "gdd_i")
        untold = of_latents or name.startswith(("digits", "edm-cifar10-cond-gdd"))
        assert (row.reported_fid is None) == untold
    smallest = rows["edm-cifar10-cond-sid"]
    assert (smallest.data_set, smallest.reported_fid) == ("CIFAR-10, classes", 1.71)
    assert round(smallest.parameters, 2) == 55.74


def test_the_command_prints_the_list_with_dashes_for_what_is_not_known(capsys):
    assert main(["presets"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    fid = {
        cells[0]: cells for cells in map(str.split, lines) if cells and cells[0] in preset_names()
    }
    assert set(fid) == set(preset_names())
    assert fid["edm2-img512-m-sida"][-2:] == ["1.488*", "edm2-img512-m-2147483-0.100"]
    assert fid["edm2-img512-m-sid"][-2] == "-"
    assert fid["edm-ffhq64-gdd-i"][-2:] == ["0.830*", "edm-ffhq-64x64-uncond-ve"]
    assert fid["edm-ffhq64-sid"][-2:] == ["1.550", "edm-ffhq-64x64-uncond-vp"]
    assert head.split()[-2:] == ["FID", "teacher"]


def test_sid_has_no_gates_and_one_switch_makes_a_sida_preset_sid():
    sid = method_of("edm2-img512-xs-sida", "method=sid")
    assert roles_of(sid.updates(0)) == ["fake_score", "generator"]
    assert not any(role.reads_real for role in sid.roles())
    sida = method_of("edm2-img512-xs-sida")
    assert roles_of(sida.updates(99_999)) == ["fake_score"]
    assert roles_of(sida.updates(100_000)) == ["fake_score", "generator"]


@pytest.mark.parametrize("name", DIGITS)
def test_the_demo_s_need_nothing_but_the_package(name: str):
    config = load_config(name)
    feature_networks = getattr(config.objective, "feature_networks", {})
    for given in (config.teacher, *feature_networks.values()):
        assert Path(given).exists(), given


def test_each_of_the_demo_s_has_a_run_folder_of_its_own():
    folders = {load_config(name).run_dir for name in DIGITS}
    assert len(folders) == len(DIGITS)
    assert all(load_config(n).data == f"{load_config(n).run_dir}/shards" for n in DIGITS)
