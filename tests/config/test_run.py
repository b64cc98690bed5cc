"""One YAML file makes a run; every mistake is one clear error before anything is built."""

from pathlib import Path

import pytest
import yaml

from sid_scale.config.parse import ConfigError
from sid_scale.config.run import load_config, preset_names, to_yaml

REQUIRED = {"run_dir": "r", "teacher": "t", "data": "d", "deepspeed": "ds.json", "total_images": 10}


@pytest.fixture
def write(tmp_path: Path):
    def write(**settings) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({**REQUIRED, **settings}))
        return path

    return write


def test_defaults_are_the_published_ones(write):
    config = load_config(write())
    assert config.method == "sida"
    assert config.batch_size == 2048
    assert config.learning_rate.generator == config.learning_rate.fake_score == 5e-5
    assert config.adam.betas == (0.0, 0.999)
    assert (config.objective.alpha, config.objective.tmax) == (1.0, 800)
    assert config.objective.init_sigma == 2.5
    assert config.objective.loss_scale_generator_gan == 0.01
    assert (config.warm_up.generator_images, config.warm_up.adversarial_images) == (
        100_000,
        200_000,
    )
    assert config.forced_weight_norm.generator
    assert not config.forced_weight_norm.fake_score
    assert (config.ema.half_life, config.ema.ramp_up) == (2_000_000, 0.05)


def test_overrides_reach_into_groups(write):
    config = load_config(
        write(), ["learning_rate.generator=1e-4", "seed=7", "steps=4", "checkpoint.every_images=5"]
    )
    assert config.learning_rate.generator == 1e-4
    assert config.learning_rate.fake_score == 5e-5
    assert (config.seed, config.steps, config.checkpoint.every_images) == (7, 4, 5)


def test_the_resolved_config_reads_back_the_same(write, tmp_path: Path):
    config = load_config(write(method="sid2a", generator_init="g"), ["ema.ramp_up=0.1"])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_a_file_can_extend_another(write, tmp_path: Path):
    write(seed=3, objective={"alpha": 1.2})
    (tmp_path / "child.yaml").write_text("extends: run.yaml\nobjective: {tmax: 700}\n")
    config = load_config(tmp_path / "child.yaml")
    assert (config.seed, config.objective.alpha, config.objective.tmax) == (3, 1.2, 700)


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name: str):
    method = name.rpartition("-")[2]
    assert load_config(name).method == ("sida" if name == "digits" else method)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "unknown key learning_rat; did you mean 'learning_rate'"),
        ({"learning_rate": {"generatr": 1}}, r"learning_rate\.generatr; did you mean 'generator'"),
        ({"method": "sidaa"}, "method: 'sidaa' is none of sid, sida, sid2a; did you mean 'sida'"),
        ({"steps": 3}, "steps: 3 is none of 1, 2, 4"),
        ({"batch_size": "many"}, "batch_size: expected int, got 'many'"),
        ({"batch_size": True}, "batch_size: expected int, got True"),
        ({"batch_size": 2.5}, "batch_size: expected int, got 2.5"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"objective": 3}, "objective: expected a group of settings, got 3"),
        ({"objective": {"tmax": 1200}}, "tmax: 1200.0 is not in"),
        ({"learning_rate": {"generator": 0}}, "generator: 0.0 is not above 0"),
        ({"learning_rate": {"generator": float("nan")}}, "generator: nan is not above 0"),
        ({"batch_size": 100, "micro_batch": 32}, "nearest that are: 96, 128"),
        ({"data": None}, "method sida learns from real data: set data"),
        ({"method": "sid2a"}, "sid2a starts from a given generator: set generator_init"),
        ({"ema": {"relative_width": 0.5}}, "relative_width: 0.5 is not in"),
        ({"adam": {"betas": [0.0]}}, "adam.betas: expected tuple"),
    ],
)
def test_mistakes_are_named(write, settings, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(**settings))


def test_a_missing_key_is_named(tmp_path: Path):
    (tmp_path / "run.yaml").write_text("run_dir: r\n")
    with pytest.raises(ConfigError, match="teacher is missing and has no default"):
        load_config(tmp_path / "run.yaml")


def test_an_unknown_file_names_the_nearest_preset():
    with pytest.raises(ConfigError, match="neither a file nor a preset; did you mean 'digits'"):
        load_config("digit")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n"])
def test_a_file_without_settings(tmp_path: Path, text: str):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml"):
        load_config(tmp_path / "run.yaml")


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3", "seed=["])
def test_a_malformed_override(write, override: str):
    with pytest.raises(ConfigError, match="override"):
        load_config(write(seed=1), [override])


def test_a_batch_that_the_devices_cannot_share(write):
    config = load_config(write(batch_size=64, micro_batch=32))
    assert config.accumulation(1) == 2
    assert config.accumulation(2) == 1
    with pytest.raises(ConfigError, match="32 x 3 devices = 96; the nearest that are: 96"):
        config.accumulation(3)
