"""A real SLURM of three nodes on this machine: one controller and three daemons, each with ports of
its own, in a folder that is all they know. It leaves nothing behind."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from getpass import getuser
from pathlib import Path
from typing import TypeVar

import psutil

from tests.ranks import free_port

T = TypeVar("T")

PATIENCE = 300.0  # seconds; nothing but a hang takes so long, on a busy machine either
# proctrack/linuxproc: proctrack/pgid keeps every job that has run a step for three seconds more.
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES = ("node1", "node2", "node3")  # jobs get the first that are free
GPUS = 4  # that each node says it has; jobs that share it fit
# SLURM sets CUDA_VISIBLE_DEVICES for devices of NVIDIA only. Its tasks get it from this.
PROLOG = """\
#!/bin/sh
[ -z "$TEST_DEVICES" ] || echo "export CUDA_VISIBLE_DEVICES=$TEST_DEVICES"
"""
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")

CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=30
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
TaskProlog={folder}/prolog
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
ReturnToService=2
JobRequeue=1
MpiDefault=none
SwitchType=switch/none
SlurmctldTimeout=10
SlurmdTimeout=20
MessageTimeout=10
KillWait=60
CompleteWait=0
EpilogMsgTime=0
MinJobAge=3600
GresTypes=gpu
NodeName=DEFAULT CPUs=8 RealMemory=64000 Gres=gpu:a100:{gpus}
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing_programs() -> list[str]:
    """What of SLURM and munge is not installed here."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


class Cluster:
    """The cluster; `start` and `stop` frame its attempt."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "SID_SCALE_VENV": sys.prefix,
            "PATH": _path(),
            "SLURM_CONF": str(folder / "slurm.conf"),
        }
        self._daemons: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        folder, host = self.folder, os.uname().nodename.split(".")[0]
        for name in ("state", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()}"
            for node in NODES
        )
        text = CONF.format(
            folder=folder,
            host=host,
            user=getuser(),
            gpus=GPUS,
            controller=free_port(),
            nodes=nodes,
        )
        (folder / "slurm.conf").write_text(text)
        for number in range(GPUS):
            (folder / f"gpu{number}").touch()  # what stands for a device
        gpus = f"Name=gpu Type=a100 File={folder}/gpu[0-{GPUS - 1}]\n"
        (folder / "gres.conf").write_text(gpus)
        (folder / "prolog").write_text(PROLOG)
        (folder / "prolog").chmod(0o755)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        paths = [f"--{option}={folder}/munge.{ending}" for option, ending in files.items()]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", *paths)
        self.wait(lambda: (folder / "munge.socket").exists(), "munged's socket")
        self._start("slurmctld", "-D")
        for node in NODES:
            self.start_node(node)
        self.wait(lambda: set(self.node_states().values()) == {"IDLE"}, "idle nodes")

    def start_node(self, node: str, *options: str) -> None:
        """Starts a node's daemon, at first or again; with -b as after a boot."""
        self._start("slurmd", "-D", "-N", node, *options, name=node)

    def kill_node(self, node: str) -> None:
        """Ends a node's daemon as a crash would: its jobs' processes live on."""
        daemon = self._daemons.pop(node)
        daemon.kill()
        daemon.wait()

    def crash_node(self, node: str) -> None:
        """Ends a node's daemon and all that runs there, without a word to the controller."""
        self.kill_node(node)
        there = self.processes(SLURMD_NODENAME=node)
        parents = {p.parent() for p in there}
        _kill([*(p for p in parents if p and p.name().startswith("slurmstepd")), *there])

    def _start(self, program: str, *arguments: str, name: str | None = None) -> None:
        name = name or program
        with open(self.folder / f"{name}.out", "ab") as out:
            self._daemons[name] = subprocess.Popen(
                [program, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )

    def stop(self) -> None:
        """Ends all daemons and jobs."""
        daemons = {daemon.pid for daemon in self._daemons.values()}
        _kill(process for process in self.processes() if process.pid not in daemons)
        for daemon in reversed(list(self._daemons.values())):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(3)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        _kill(self.processes())

    def processes(self, job: int | None = None, **marks: str) -> list[psutil.Process]:
        """Everything alive that was started by this cluster, or by one of its jobs; with `marks`,
        what has these in its environment."""
        marks["SLURM_CONF"] = self.environment["SLURM_CONF"]
        if job is not None:
            marks["SLURM_JOB_ID"] = str(job)
        found = []
        for process in psutil.process_iter():
            try:
                told = process.environ()
                gone = process.status() == psutil.STATUS_ZOMBIE
            except psutil.Error:
                continue
            if process.pid != os.getpid() and not gone and marks.items() <= told.items():
                found.append(process)
        return found

    def ranks(self, job: int) -> dict[int, psutil.Process]:
        """The training processes of a job, by rank."""
        found = {}
        for process in self.processes(job):
            try:
                command, told = process.cmdline(), process.environ()
            except psutil.Error:
                continue
            if "RANK" in told and "sid_scale.train" in command and "--local_rank" in str(command):
                found[int(told["RANK"])] = process
        return found

    def run(self, *command: str, check: bool = True, **environment: str) -> str:
        """A command of a user of this cluster; returns what it says."""
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={**self.environment, **environment},
            timeout=PATIENCE,
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def submit(self, *arguments: str, **environment: str) -> int:
        """`sbatch ARGUMENTS`; returns the job's id."""
        return int(self.run("sbatch", "--parsable", *arguments, **environment).split(";")[0])

    def cancel_all(self) -> None:
        """Ends what a failed test may have left; a test that has passed has left nothing."""
        self.run("scancel", "--user", getuser(), check=False)

    def job(self, job: int) -> dict[str, str]:
        """What `scontrol show job` tells; of an array, of one of its tasks."""
        return dict(re.findall(r"(\S+?)=(\S*)", self._shown(job)))

    def states(self, job: int) -> set[str]:
        """The states of a job, or of an array's tasks."""
        return set(re.findall(r"JobState=(\S+)", self._shown(job)))

    def _shown(self, job: int) -> str:
        return self.run("scontrol", "--oneliner", "show", "job", str(job))

    def node_states(self) -> dict[str, str]:
        told = self.run("scontrol", "--oneliner", "show", "node", check=False)
        return dict(re.findall(r"NodeName=(\S+) .*? State=([A-Z+*_]+)", told))

    def restarts(self, job: int) -> int:
        return int(self.job(job)["Restarts"])

    def hurry(self, job: int) -> None:
        """Starts a requeued job without most of the delay that SLURM gives those.

        Not in the same second: its nodes would take the new start for the one that they revoked.
        """
        self.wait(lambda: self.job(job)["JobState"] == "PENDING", "requeued job", job)
        self.run("scontrol", "update", f"JobId={job}", "StartTime=now+2", check=False)

    def log(self, job: int) -> str:
        """The batch log so far."""
        path = Path(self.job(job)["StdOut"])
        return path.read_text(errors="replace") if path.exists() else ""

    def finish(self, job: int) -> str:
        """Waits for the end of a job, of all tasks of an array; returns its final state."""
        self.wait(lambda: self.states(job) <= {*ENDED}, f"the end of job {job}", job)
        return " and ".join(sorted(self.states(job)))

    def wait(self, condition: Callable[[], T], what: str, job: int | None = None) -> T:
        """Waits until `condition` holds; fails with the logs if it does not."""
        end = time.monotonic() + PATIENCE
        while not (result := condition()):
            if time.monotonic() > end:
                raise AssertionError(f"no {what} within {PATIENCE:g} s\n{self._told(job)}")
            time.sleep(0.2)
        return result

    def _told(self, job: int | None) -> str:
        told = [json.dumps(self.node_states())]
        if job is not None:
            told += [json.dumps(self.job(job)), self.log(job)[-6000:]]
        for log in sorted(self.folder.glob("*.log")):
            told.append(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}")
        return "\n".join(told)


def _kill(processes: Iterable[psutil.Process]) -> None:
    """Kills all that are still there, and waits for their ends."""
    killed = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
            killed.append(process)
    psutil.wait_procs(killed, timeout=PATIENCE)
