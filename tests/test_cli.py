"""`sid-scale`: one table of commands, one set of manners."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sid_scale import cli
from sid_scale.cli import COMMANDS, main
from tests.generators.tiny import tiny_generator
from tests.launches import PATIENCE, start

# Runs a command line, then prints which heavy packages it has imported.
LIGHT = """
import sys
from sid_scale.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as ended:
    status = ended.code
heavy = {"torch", "deepspeed", "numpy", "diffusers", "PIL"} & sys.modules.keys()
print("\\nstatus", status, "heavy", sorted(heavy))
"""


def light(*arguments: str) -> str:
    command = [sys.executable, "-c", LIGHT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout + done.stderr


# A rank that says when it waits for the launcher to end it.
OTHER_RANK = """
import signal, sys
from sid_scale import errors
from sid_scale.cli import main

def wait(*given, wait=signal.sigtimedwait):
    print("waits", flush=True)
    return wait(*given)

errors.FIRST_RANK_SECONDS, signal.sigtimedwait = 3000, wait
sys.exit(main(["train", "--config", "none.yaml"]))
"""


def test_what_all_ranks_meet_is_told_by_the_first_before_another_ends():
    with start([sys.executable, "-c", OTHER_RANK], RANK="1", WORLD_SIZE="2") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.terminate()  # as the launcher does when rank 0 has told and ended
        told, _ = process.communicate(timeout=PATIENCE)
    assert (process.returncode, told) == (2, "")


def test_help_lists_every_command_with_a_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, (_, does) in COMMANDS.items():
        assert re.search(rf"^ +{name}\s+{re.escape(does)}$", text, re.MULTILINE), name


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_imports_nothing_heavy(command: str):
    said = light(command, "--help")
    assert "status 0 heavy []" in said
    assert f"usage: sid-scale {command}" in said


@pytest.mark.faults
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["memory", "--config", "digitz"], "did you mean 'digits'?"),
        (["memory", "--config", "digits", "seeed=1"], "unknown key seeed; did you mean 'seed'?"),
        (["train", "--config", "digits", "objective.alhpa=1"], "did you mean 'alpha'?"),
        (["train", "--config", "digits"], "training needs a launcher"),
        (["encode", "--source", "x", "--out", "o"], "give --vae FOLDER, or --codec"),
        (["generate", "--generator", "g", "--seeds", "0", "--out", "o", "--steps", "0"], "below 1"),
    ],
)
def test_a_typo_is_answered_before_anything_heavy_is_imported(arguments: list[str], message: str):
    said = light(*arguments)
    assert message in said
    assert "status 2 heavy []" in said


@pytest.mark.faults
def test_settings_can_be_looked_at_without_a_launcher(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    words = ["train", "--check", "--config", "digits", "run_dir=r", "data=d"]
    assert main(words) == 0
    assert "settings are sound" in capsys.readouterr().out
    (tmp_path / "ds.json").write_text('{"zero_optimisation": {"stage": 3}}')
    assert main([*words, f"deepspeed={tmp_path}/ds.json"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: deepspeed: {tmp_path}/ds.json: unknown key zero_optimisation")
    assert "did you mean 'zero_optimization'" in told
    assert main([*words, "compile_blocks=true"]) == 0
    assert main([*words, "compile_blocks=true", "deepspeed=zero3"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: compile_blocks: deepspeed")
    assert "asks for ZeRO stage 3" in told
    assert main([*words, "activations.teachr=keep"]) == 2
    assert "unknown key activations.teachr" in capsys.readouterr().err


def test_training_without_a_launcher_says_how_to_start_it(capsys: pytest.CaptureFixture[str]):
    assert main(["train", "--config", "digits", "seed=3"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    command = "deepspeed --num_gpus 8 --module sid_scale train --config digits seed=3"
    assert command in message


@pytest.mark.faults
def test_an_error_is_one_line_and_ctrl_c_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "o")]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"error: .*nothing: nothing is there.* user/repo.*\n", said)

    def interrupted(name: str):
        raise KeyboardInterrupt

    generator = tiny_generator(tmp_path / "g")
    monkeypatch.setattr("sid_scale.networks.folder.load_network", interrupted)
    assert main(["export", str(generator), str(tmp_path / "o")]) == cli.INTERRUPTED
    assert "Traceback" not in capsys.readouterr().err


def test_what_deepspeeds_launcher_adds_is_ignored(tmp_path: Path):
    generator, out = tiny_generator(tmp_path / "g"), tmp_path / "o.safetensors"
    assert main(["--local_rank=0", "export", str(generator), str(out)]) == 0
    assert out.is_file()


@pytest.mark.faults
@pytest.mark.parametrize("name", ["gpu", ""])
def test_what_deepspeed_cannot_compute_on_is_told(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("DS_ACCELERATOR", name)
    assert main(["presets"]) == 2
    assert capsys.readouterr().err.startswith(f"error: DS_ACCELERATOR: '{name}' is neither cuda")
