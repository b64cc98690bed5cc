"""The presets carry the published settings, size by size."""

import pytest

from sid_scale.config import load_config, preset_names

SIZES = ("xs", "s", "m", "l", "xl", "xxl")
METHODS = ("sid", "sida", "sid2a")
MICRO_BATCH = dict(zip(SIZES, (64, 64, 32, 32, 16, 2)))
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


def test_there_is_one_for_every_size_and_method():
    expected = {f"edm2-img512-{size}-{method}" for size in SIZES for method in METHODS}
    assert set(preset_names()) == expected | {"digits"}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", METHODS)
def test_settings_are_the_published_ones(size: str, method: str):
    config = load_config(f"edm2-img512-{size}-{method}")
    assert config.method == method
    assert config.batch_size == 2048
    assert config.micro_batch == MICRO_BATCH[size]
    assert config.total_images == MILLIONS[method][size] * 1_000_000
    assert config.teacher.endswith(f"edm2-img512-{TEACHERS[size]}")
    assert config.dropout == (0.0 if size in ("xs", "s") else 0.1)
    assert (config.data is None) == (method == "sid")
    assert (config.generator_init is not None) == (method == "sid2a")
    plain = size == "s" and method != "sid"
    assert config.objective.logvar_weighting != plain
    assert config.forced_weight_norm.generator != plain
    halved = size == "m" and method == "sid2a"
    assert config.objective.loss_scale_generator == (50 if halved else 100)
    assert config.learning_rate.generator == config.learning_rate.fake_score == 5e-5


def test_sid_has_no_gates_and_one_switch_makes_a_sida_preset_sid():
    config = load_config("edm2-img512-xs-sida", ["method=sid"])
    assert config.moves_generator(0)
    assert not config.is_adversarial(10**9)
    sida = load_config("edm2-img512-xs-sida")
    assert [sida.moves_generator(n) for n in (99_999, 100_000)] == [False, True]
    assert [sida.is_adversarial(n) for n in (199_999, 200_000)] == [False, True]
