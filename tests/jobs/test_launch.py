"""Ctrl-C asks a launched run to stop, gives it all the time that it takes, and ends it if pressed
again."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sid_scale.commands.launch import refuse_ignored_devices
from sid_scale.errors import UsageError
from tests.launches import PATIENCE, start, wait_for, write_slow_run
from tests.ranks import free_port
from tests.tiny import prepare, settings

LAUNCH = [sys.executable, "-m", "sid_scale", "launch"]

# Every Python imports this: DeepSpeed's launcher kills ranks after a moment, not 30 seconds.
IMPATIENT = """
import psutil
def wait_procs(processes, timeout=None, callback=None, wait=psutil.wait_procs):
    return wait(processes, 0.2, callback)
psutil.wait_procs = wait_procs
"""
# Stands for pdsh and ssh: runs a command once for each node, as that node's sshd would.
PDSH = f"""#!{sys.executable}
import os, signal, subprocess, sys
nodes = sys.argv[sys.argv.index("-w") + 1].split(",")
command = " ".join(sys.argv[sys.argv.index("-w") + 2 :])
kept = {{name: os.environ[name] for name in ("HOME", "PATH")}}
free = lambda: signal.pthread_sigmask(signal.SIG_SETMASK, [])
def node(number):
    words = ["bash", "-c", command.replace("%n", str(number))]
    return subprocess.Popen(words, env=kept, start_new_session=True, preexec_fn=free)
sys.exit(max(abs(each.wait()) for each in [node(n) for n in range(len(nodes))]))
"""
NODES = ["--hostfile", "hosts", "--master_addr", "127.0.0.1"]
FROM_ONE_NODE = [["--no_ssh_check"]]
ON_EACH_NODE = [["--no_ssh", "--node_rank", number] for number in "01"]


def press_ctrl_c(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everyone in the foreground


@pytest.mark.distributed
@pytest.mark.faults
@pytest.mark.parametrize("starts", [FROM_ONE_NODE, ON_EACH_NODE], ids=["one", "each"])
def test_an_iteration_longer_than_the_launchers_patience_leaves_a_checkpoint(
    tmp_path: Path, starts: list[list[str]]
):
    prepare(tmp_path)
    write_slow_run(tmp_path / "slow.py", seconds=1.5)
    (tmp_path / "sitecustomize.py").write_text(IMPATIENT)
    (tmp_path / "hosts").write_text("node1 slots=1\nnode2 slots=1\n")
    (tmp_path / "pdsh").write_text(PDSH)
    (tmp_path / "pdsh").chmod(0o755)
    place = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    }
    deepspeed = [str(Path(sys.executable).with_name("deepspeed")), *NODES]
    deepspeed += ["--master_port", str(free_port())]
    run = ["slow.py", "--config", "run.yaml", *settings(tmp_path, log__samples_every_images=0)]
    launched = [start([*LAUNCH, *deepspeed, *how, *run], tmp_path, **place) for how in starts]
    wait_for((tmp_path / "iterating").exists, launched[0])
    press_ctrl_c(launched[-1])
    told = [process.communicate(timeout=PATIENCE)[0] for process in launched]
    assert [process.returncode for process in launched] == [75] * len(starts), told
    assert "SIGINT: the run is asked to stop after its iteration" in told[-1]
    assert (tmp_path / "run" / "checkpoints" / "latest").resolve().name == f"{8:012d}"
    assert not list(tmp_path.glob(".stop-*"))


# A launcher and a rank in one; what it gets after `--stop-file` is what a rank gets.
RANK = """
import sys, time
from pathlib import Path
from sid_scale.jobs import stop
from sid_scale.jobs.stop_file import watched
stop.SAME_REQUEST_SECONDS = 0
with stop.stop_requests(600), watched(Path(sys.argv[-1])):
    Path("began").touch()
    time.sleep(600)
"""
DEAF = """
import time
from pathlib import Path
Path("began").touch()
time.sleep(600)
"""
# `launch`, in which the same request is known as one for a moment only.
HASTY = """
import sys
from sid_scale import cli
from sid_scale.jobs import launch
launch.SAME_REQUEST_SECONDS = 0
launch.END_SECONDS = float(sys.argv[1])
sys.exit(cli.main(["launch", *sys.argv[2:]]))
"""


@pytest.mark.faults
@pytest.mark.parametrize(
    ("program", "number", "patience", "status", "last"),
    [
        (RANK, signal.SIGINT, "60", 128 + signal.SIGINT, "asked again; this rank ends now"),
        (RANK, signal.SIGHUP, "60", 128 + signal.SIGTERM, "asked again; this rank ends now"),
        (DEAF, signal.SIGTERM, "0.1", 128 + signal.SIGKILL, "no end within 0.1 s: killed"),
    ],
    ids=["a rank ends itself", "so it does for a closed terminal", "what is deaf is killed"],
)
def test_the_same_signal_again_ends_everything(
    tmp_path: Path, program: str, number: signal.Signals, patience: str, status: int, last: str
):
    words = [sys.executable, "-c", program, "--config", "c"]
    at_a_terminal = ["env", "--default-signal=HUP"]  # where these tests run behind nohup, too
    command = [*at_a_terminal, sys.executable, "-c", HASTY, patience, *words]
    with start(command, tmp_path) as process:
        wait_for((tmp_path / "began").exists, process)
        process.send_signal(number)
        assert process.stdout is not None
        assert "asked to stop after its iteration" in process.stdout.readline()
        if program is RANK:
            assert ": stopping after this iteration" in process.stdout.readline()
        process.send_signal(number)
        told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, told
    assert last in told


def test_behind_nohup_a_closed_terminal_is_nothing(tmp_path: Path):
    words = [sys.executable, "-c", DEAF, "--config", "c"]
    with start(["nohup", sys.executable, "-c", HASTY, "0", *words], tmp_path) as process:
        wait_for((tmp_path / "began").exists, process)
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("SIGTERM: the run is asked to stop")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no-such-launcher", "--config", "c"], "no-such-launcher cannot be started"),
        (["deepspeed", "--module", "sid_scale"], "with the run's --config"),
        ([], "with the run's --config"),
    ],
)
def test_what_cannot_be_started_is_told(tmp_path: Path, words: list[str], message: str):
    process = start([*LAUNCH, *words], tmp_path)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert told.startswith("error: ")
    assert message in told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "visible"),
    [
        ("--num_gpus 2", ""),
        ("--num_gpus 2", "0,1"),
        ("--num_gpus 2", "0, 1"),
        ("--num_gpus 2", "0,1,2,3"),
        ("--num_gpus two", "4,5"),
        ("", "4,5"),
        ("--include localhost:4,5", "4,5"),
        ("--hostfile hosts --num_gpus 2", "4,5"),
    ],
)
def test_gpus_that_deepspeed_takes_as_asked_are_fine(words: str, visible: str):
    refuse_ignored_devices(["deepspeed", *words.split(), "--config", "c"], visible)


@pytest.mark.faults
@pytest.mark.parametrize("word", ["--num_gpus 2", "--num_gpus=2", "--num_accelerators 2"])
@pytest.mark.parametrize(
    ("visible", "wanted"),
    [("4,5", "4,5"), ("4,5,6,7", "4,5"), ("1,0", "1,0"), ("GPU-1f,GPU-2e", "NUMBER,NUMBER")],
)
def test_gpus_that_deepspeed_would_not_take_are_refused(word: str, visible: str, wanted: str):
    hint = re.escape(f"takes GPUs 0,1; in place of --num_gpus give --include localhost:{wanted}")
    with pytest.raises(UsageError, match=f"{hint}( |$)"):
        refuse_ignored_devices(["deepspeed", *word.split(), "--config", "c"], visible)
