"""One YAML file makes a run; every mistake is one clear error before anything is built."""

import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest
import yaml
from pydantic.dataclasses import dataclass

from sid_scale.config.fields import SETTINGS, Positive
from sid_scale.config.parse import ConfigError
from sid_scale.config.run import RunConfig, load_config, preset_names, to_yaml
from sid_scale.methods.settings import OBJECTIVES, register_objective

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
    assert config.learning_rate.generator == config.objective.fake_score.learning_rate == 5e-5
    assert config.adam.betas == (0.0, 0.999)
    assert (config.objective.alpha, config.objective.tmax) == (1.0, 800)
    assert config.init_sigma == 2.5
    assert config.objective.loss_scale_generator_gan == 0.01
    warm_up = config.objective.warm_up
    assert (warm_up.generator_images, warm_up.adversarial_images) == (100_000, 200_000)
    assert config.forced_weight_norm
    assert not config.objective.fake_score.forced_weight_norm
    assert (config.ema.half_life, config.ema.ramp_up) == (2_000_000, 0.05)


def test_overrides_reach_into_groups(write):
    config = load_config(
        write(), ["learning_rate.generator=1e-4", "seed=7", "steps=4", "checkpoint.every_images=5"]
    )
    assert config.learning_rate.generator == 1e-4
    assert config.objective.fake_score.learning_rate == 5e-5
    assert (config.seed, config.steps, config.checkpoint.every_images) == (7, 4, 5)


def test_a_group_that_may_be_null_is_switched_on_and_off(write):
    assert load_config(write()).log.wandb is None
    switched_on = load_config(write(log={"wandb": None}), ["log.wandb.project=p"]).log.wandb
    assert switched_on is not None
    assert (switched_on.project, switched_on.mode) == ("p", None)
    assert load_config(write(log={"wandb": {"project": "p"}}), ["log.wandb=null"]).log.wandb is None


def test_home_and_environment_are_put_into_every_path(write, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    config = load_config(
        write(
            run_dir="~/runs/x",
            teacher="$SCRATCH/t",
            data="s3:/${SCRATCH}/x",
            deepspeed="~/ds.json",
            labels="~/labels",
            stream={"cache_dir": "$SCRATCH/cache"},
            evaluation={"reference": ["~/r.npz", "r2.npz"], "inception": "~/i", "dinov2": "~/d"},
        ),
        ["resume=~/c", "generator_init=$SCRATCH/g"],
    )
    assert (config.run_dir, config.teacher) == ("/home/me/runs/x", "/scratch/t")
    assert (config.data, config.deepspeed) == ("s3://scratch/x", "/home/me/ds.json")
    assert (config.labels, config.resume) == ("/home/me/labels", "/home/me/c")
    assert (config.generator_init, config.stream.cache_dir) == ("/scratch/g", "/scratch/cache")
    evaluation = config.evaluation
    assert evaluation.reference == ("/home/me/r.npz", "r2.npz")
    assert (evaluation.inception, evaluation.dinov2) == ("/home/me/i", "/home/me/d")


def test_a_command_that_a_shell_runs_is_left_to_it(write):
    assert load_config(write(data="pipe:cat $X")).data == "pipe:cat $X"


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
    method = load_config(name).method.replace("_", "-")
    assert name.endswith(f"-{method}") or name in ("digits", "digits-pixels")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, "unknown key learning_rat; did you mean 'learning_rate'"),
        ({"learning_rate": {"generatr": 1}}, r"learning_rate\.generatr; did you mean 'generator'"),
        (
            {"method": "sidaa"},
            "method: 'sidaa' is none of sid, sida, sid2a, gdd, gdd_i; did you mean 'sida'",
        ),
        ({"learning-rate": 1}, "unknown key learning-rate; did you mean 'learning_rate'"),
        ({"learning_rate": {"float": 1}}, r"unknown key learning_rate\.float"),
        ({"objective": {"fake-score": 1}}, r"objective\.fake-score; did you mean 'fake_score'"),
        ({"1": 2}, "unknown key 1"),
        ({"run_dir": "$NOWHERE/x"}, r"run_dir: the environment has no variable \$NOWHERE"),
        ({"run_dir": "~nobody-at-all/x"}, "run_dir: there is no user ~nobody-at-all"),
        ({"evaluation": {"reference": "a,${NO WAY}"}}, r"evaluation\.reference: .* \$\{NO WAY\}"),
        ({"method": ["sid"]}, r"method: \['sid'\] is none of sid, sida, sid2a"),
        ({"steps": 3}, "steps: 3 is none of 1, 2, 4"),
        ({"steps": True}, "steps: expected a number, got True"),
        ({"batch_size": "many"}, "batch_size: expected a whole number, got 'many'"),
        ({"batch_size": True}, "batch_size: expected a number, got True"),
        ({"batch_size": 2.5}, "batch_size: expected a whole number, got 2.5"),
        ({"batch_size": 0}, "batch_size: 0 is below 1"),
        ({"objective": 3}, "objective: expected a group of settings, got 3"),
        ({"objective": {"tmax": 1200}}, r"objective\.tmax: 1200 is above 1000"),
        ({"learning_rate": {"generator": 0}}, r"learning_rate\.generator: 0 is not above 0"),
        (
            {"learning_rate": {"generator": float("nan")}},
            "expected a finite number, got nan",
        ),
        ({"batch_size": 100, "micro_batch": 32}, "nearest that are: 96, 128"),
        ({"objective": {"adversarial_group": 0}}, r"objective\.adversarial_group: 0 is below 1"),
        (
            {"micro_batch": 16, "objective": {"adversarial_group": 3}},
            r"micro_batch 16 is no multiple of objective\.adversarial_group 3",
        ),
        (
            {"micro_batch": 16, "objective": {"adversarial_group": 32}},
            r"micro_batch 16 is no multiple of objective\.adversarial_group 32",
        ),
        ({"data": None}, "method sida learns from real data: set data"),
        ({"method": "sid2a"}, "sid2a starts from a given generator: set generator_init"),
        ({"log": {"wandb": {"projct": "p"}}}, r"unknown key log\.wandb\.projct; did you mean 'pro"),
        ({"log": {"wandb": {"name": "n"}}}, r"log\.wandb\.project is missing and has no default"),
        ({"profile": {"steps": 2}}, r"profile\.at_images is missing and has no default"),
        ({"profile": {"at_images": 0, "steps": 21}}, r"profile\.steps: 21 is above 20"),
        ({"profile": {"at_images": 10}}, r"at_images 10 is not below total_images 10"),
        ({"log": {"wandb": True}}, r"log\.wandb: expected a group of settings, got True"),
        (
            {"log": {"wandb": {"project": "p", "mode": "of"}}},
            r"mode: 'of' is none of online, offline, disabled; did you mean 'offline'",
        ),
        ({"ema": {"relative_width": 0.5}}, r"relative_width: 0.5 is not below 0\.289"),
        ({"adam": {"betas": [0.0]}}, "adam.betas: expected a longer list"),
        ({"adam": {"betas": [0.0, 1]}}, r"adam\.betas: 1 is not below 1"),
        ({"adam": {"generator_betas": [-0.1, 0.9]}}, r"adam\.generator_betas: -0.1 is below 0"),
        ({"objective": {"alhpa": 1}}, r"objective\.alhpa; did you mean 'alpha'"),
        ({"objective": {"fake_score": {"p_sdt": 1}}}, r"fake_score\.p_sdt; did you mean 'p_std'"),
        ({"checkpoint": {"async_save": 1}}, "async_save: expected true or false, got 1"),
        ({"seed": float("inf")}, "seed: expected a finite number, got inf"),
        ({"run_dir": 3}, "run_dir: expected a text, got 3"),
        ({"dropout": 1}, "dropout: 1 is not below 1"),
        (
            {"activations": {"techer": "keep"}},
            r"activations\.techer; .* generator, fake_score, teach",
        ),
        (
            {"activations": {"teacher": "kep"}},
            "expected keep, checkpoint, offload or a list of res",
        ),
        ({"activations": {"teacher": []}}, r"activations\.teacher: expected keep, .*, got \[\]"),
        ({"activations": {"teacher": [64, 0]}}, r"activations\.teacher: expected keep.*\[64, 0\]"),
        ({"activations": {"teacher": [True]}}, r"activations\.teacher: expected keep.*\[True\]"),
        ({"activations": {"teacher": None}}, r"activations\.teacher: expected keep.* None"),
        ({"activations": "checkpoint"}, "activations: expected a group of settings, got 'check"),
        ({"activations": {1: "keep"}}, "activations: expected a text, got 1"),
        ({"teacher_activations": "keep"}, "key teacher_activations; did you mean 'activations'"),
        ({"compile_blocks": 1}, "compile_blocks: expected true or false, got 1"),
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


def test_groups_of_the_adversarial_term_divide_the_micro_batch(write):
    grouped = {"micro_batch": 16, "objective": {"adversarial_group": 2}}
    assert load_config(write(**grouped)).objective.adversarial_group == 2
    assert load_config(write()).objective.adversarial_group is None
    sid = load_config(write(**grouped), ["method=sid", "micro_batch=1"])  # has no such term
    assert sid.objective.in_effect(sid) == {}


def test_numbers_are_read_as_people_write_them(write):
    given = ["total_images=2_000_000", "learning_rate.generator=5e-5", "adam.betas=0.0,0.99"]
    config = load_config(write(), [*given, "evaluation.metrics=fid,is"])
    assert (config.total_images, config.learning_rate.generator) == (2_000_000, 5e-5)
    assert (config.adam.betas, config.evaluation.metrics) == ((0.0, 0.99), ("fid", "is"))


def test_activations_are_set_by_network_and_resolution(write, tmp_path: Path):
    given = {"teacher": "offload", "generator": [64, 32]}
    config = load_config(write(activations=given), ["activations.fake_score=64"])
    assert config.activations == {"teacher": "offload", "generator": (64, 32), "fake_score": (64,)}
    assert load_config(write(), ["activations.teacher=64,32"]).activations == {"teacher": (64, 32)}
    assert load_config(write()).activations_of(["a", "b"]) == {"a": "keep", "b": "keep"}
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config


def test_each_method_has_settings_of_its_own(write, monkeypatch: pytest.MonkeyPatch):
    @dataclass(frozen=True, config=SETTINGS)
    class ToyObjective:
        width: Positive = 3

    monkeypatch.setitem(OBJECTIVES, "toy", None)  # gone again when the test ends
    register_objective("toy", ToyObjective)
    assert load_config(write(method="toy", objective={"width": 4})).objective == ToyObjective(4)
    with pytest.raises(ConfigError, match=r"unknown key objective\.alpha"):
        load_config(write(method="toy", objective={"alpha": 1}))


def test_a_config_is_checked_before_torch_is_imported():
    lines = (
        "import sys",
        "from sid_scale.config.run import load_config",
        "load_config('digits')",
        "assert not {'torch', 'deepspeed', 'numpy'} & sys.modules.keys()",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


def test_every_number_and_switch_refuses_what_pydantic_would_convert():
    """Types of `config/fields.py` alone: bare `int` takes true, bare `bool` takes 1."""
    groups, bare = [RunConfig, *OBJECTIVES.values()], []
    for group in groups:
        for name, hint in get_type_hints(group, include_extras=True).items():
            groups += [hint] if is_dataclass(hint) and hint not in groups else []
            bare += [f"{group.__name__}.{name}"] if hint in (int, float, bool) else []
    assert not bare


def test_a_run_that_does_not_say_takes_32_snapshots_of_its_averages():
    given = ["run_dir=r", "data=d", "ema.relative_widths=0.05,0.1", "total_images=64_000"]
    config = load_config("digits", given)
    assert config.ema.relative_widths == (0.05, 0.1)
    assert config.ema_snapshot_images == 2000
    config = load_config("digits", [*given, "ema.snapshot_every_images=7"])
    assert config.ema_snapshot_images == 7


@pytest.mark.faults
@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ("[0.05]", "two or more different widths"),
        ("[0.05, 5e-2]", "two or more different widths"),
        ("[]", "two or more different widths"),
        ("[0.05, 0.3]", "0.3 is not below 0.289"),
        ("[0, 0.1]", "0 is not above 0"),
        ("0.1", "expected a list"),
    ],
)
def test_widths_that_no_average_can_be_reconstructed_of_are_refused(widths: str, message: str):
    with pytest.raises(ConfigError, match=f"ema.relative_widths: .*{message}"):
        load_config("digits", ["run_dir=r", "data=d", f"ema.relative_widths={widths}"])
