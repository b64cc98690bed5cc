"""The scripts as texts, and what the pipeline would submit."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deepspeed.launcher.multinode_runner import PDSHRunner
from deepspeed.launcher.runner import parse_args
from torch.distributed.run import get_args_parser

from sid_scale.demo.prepare import TEACHER
from tests.conftest import ROOT

SCRIPTS = sorted([*(ROOT / "slurm").glob("*.sh"), *(ROOT / "slurm").glob("*.sbatch")])
PIPELINE = str(ROOT / "slurm" / "pipeline.sh")


def test_shellcheck_finds_nothing():
    if shutil.which("shellcheck") is None and "CI" not in os.environ:
        pytest.skip("shellcheck is not installed")
    scripts = [*SCRIPTS, *(ROOT / "tools").glob("*.sh")]
    command = ["shellcheck", "--external-sources", "--source-path", "SCRIPTDIR", "--shell=bash"]
    done = subprocess.run([*command, *map(str, scripts)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def plan(*arguments: str, expect: int = 0, pipeline: str = PIPELINE) -> str:
    done = subprocess.run(
        ["bash", pipeline, "--dry-run", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": f"{ROOT}/none:{os.environ['PATH']}"},
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_dry_run_prints_what_would_be_submitted(tmp_path: Path):
    run = f"run_dir={tmp_path}/xxl"
    options = ["--images", "/data/train", "--nodes", "4", "--sbatch", "--account=lab"]
    told = plan(*options, "edm2-img512-xxl-sida", run)
    assert "4 nodes x 8 GPUs, ZeRO 2, bfloat16" in told
    assert "micro-batch 32 x accumulation 2 x 32 GPUs" in told
    assert "GB of 80: fits" in told
    jobs = [line for line in told.splitlines() if line.startswith("sbatch ")]
    names = ["encode_latents", "distill", "consolidate", "evaluate", "report"]
    for job, name, before in zip(jobs, names, [None, *names], strict=False):
        assert f" slurm/{name}.sbatch " in job
        assert "--account=lab" in job
        assert ("--dependency=afterok:" in job) == (before is not None)
        assert before is None or f"afterok:{before.upper()}" in job
    assert len(jobs) == 5
    assert not (tmp_path / "xxl").exists()


def test_a_linked_pipeline_takes_a_type_of_gpu(tmp_path: Path):
    (tmp_path / "mine").symlink_to(PIPELINE)
    options = ["--images", "i", "--gpus-per-node", "a100:4", "edm2-img512-xs-sida"]
    told = plan(*options, f"run_dir={tmp_path}/xs", pipeline=f"{tmp_path}/mine")
    assert "2 nodes x 4 GPUs" in told
    assert told.count(" --gpus-per-node=a100:4 ") == 2


def test_a_run_that_would_not_fit_says_so(tmp_path: Path):
    small = ["--images", "/data/train", "--gpu-memory", "16"]
    told = plan(*small, "edm2-img512-xs-sida", f"run_dir={tmp_path}/xs")
    assert "GB of 16: DOES NOT FIT" in told


def encode(folder: Path, tasks: str, task: int, **environment: str) -> tuple[int, str]:
    """Status and output of a task of an array `--array=TASKS`."""
    numbers = [int(number) for number in tasks.split(",")]
    (folder / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    (folder / "srun").chmod(0o755)
    of_slurm = {
        "JOB_ID": "7",
        "ARRAY_TASK_ID": str(task),
        "ARRAY_TASK_COUNT": str(len(numbers)),
        "ARRAY_TASK_MIN": str(min(numbers)),
        "ARRAY_TASK_MAX": str(max(numbers)),
    }
    given = {f"SLURM_{name}": value for name, value in of_slurm.items()} | environment
    place = {"SID_SCALE_HOME": str(ROOT), "SID_SCALE_VENV": sys.prefix}
    place["PATH"] = f"{folder}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "slurm" / "encode_latents.sbatch"), "--out=x"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | place | given)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("tasks", "task", "parts", "part"),
    [("0,1,2", 2, None, "2/3"), ("3,7", 7, "8", "7/8"), ("0", 0, "8", "0/8")],
)
def test_a_task_of_an_array_makes_the_part_of_its_number(
    tmp_path: Path, tasks: str, task: int, parts: str | None, part: str
):
    status, told = encode(tmp_path, tasks, task, **({"SID_SCALE_PARTS": parts} if parts else {}))
    assert status == 0
    assert f"encode --part {part} --out=x" in told


@pytest.mark.faults
@pytest.mark.parametrize(
    ("tasks", "task", "parts", "message"),
    [
        ("3,7", 7, "", "error: part 7 of how many?"),
        ("3", 3, "", "error: part 3 of how many?"),
        ("1,2,3", 1, "", "error: part 1 of how many?"),
        ("0,2,4", 2, "", "error: part 2 of how many?"),
        ("3,8", 8, "8", "error: SID_SCALE_PARTS=8: there is no part 8"),
        ("3", 3, "many", "error: SID_SCALE_PARTS=many: there is no part 3"),
    ],
)
def test_an_array_that_does_not_say_its_parts_is_refused(
    tmp_path: Path, tasks: str, task: int, parts: str, message: str
):
    status, told = encode(tmp_path, tasks, task, SID_SCALE_PARTS=parts)
    assert status == 1
    assert message in told
    assert "encode" not in told.replace("encode_latents", "")


@pytest.mark.parametrize(
    ("given", "ranks"),
    [
        ({"SLURM_GPUS_PER_NODE": "a100"}, "1"),
        ({"SLURM_GPUS_PER_NODE": "a100:2,h100:1"}, "3"),
        ({"SLURM_GPUS_ON_NODE": "4", "SLURM_GPUS_PER_NODE": "8"}, "4"),
        ({"SLURM_GPUS_PER_NODE": "8", "CUDA_VISIBLE_DEVICES": "GPU-1f,GPU-2e"}, "2"),
        ({"SLURM_GPUS_PER_TASK": "a100:1", "SLURM_TASKS_PER_NODE": "4(x2)"}, "4"),
    ],
)
def test_ranks_are_the_gpus_of_a_node(given: dict[str, str], ranks: str):
    command = 'source slurm/common.sh; srun() { "$@"; }; one_task_a_node; ranks_per_node'
    place = {"home": str(ROOT), "SID_SCALE_VENV": sys.prefix, "SLURM_JOB_ID": "7"}
    told = subprocess.run(
        ["bash", "-c", command],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": "/nowhere", **place, **given},
    ).stdout
    assert told == f"{ranks}\n"


@pytest.mark.parametrize("job", [0, 11_999, 12_000, 4_294_967_295])
def test_ports_of_jobs_are_none_that_systems_give_away(job: int):
    command = "source slurm/common.sh; port"
    place = {"home": str(ROOT), "SID_SCALE_VENV": sys.prefix, "SLURM_JOB_ID": str(job)}
    environment = {"PATH": os.environ["PATH"], "HOME": "/nowhere", **place}
    told = subprocess.run(
        ["bash", "-c", command], check=True, capture_output=True, cwd=ROOT, env=environment
    ).stdout
    assert 20_000 <= int(told) < 32_768


def test_the_readme_makes_a_deepspeed_env_that_ranks_of_other_nodes_get(tmp_path: Path):
    """DeepSpeed's own code reads it, and a shell as on another node runs what comes of it."""
    (tmp_path / "slurm").symlink_to(ROOT / "slurm")
    readme = (ROOT / "docs" / "slurm.md").read_text().splitlines()
    makes = [line for line in readme if line.endswith(" .deepspeed_env")]
    assert len(makes) == 2
    given = {"PATH": "/my venv/bin:/usr/bin:/bin"}
    subprocess.run(["bash", "-c", "\n".join(makes)], check=True, cwd=tmp_path, env=given)

    words = ["--hostfile", "hosts", "--master_addr", "node1", "train.py"]
    runner = PDSHRunner(parse_args(words), world_info_base64="")
    for line in (tmp_path / ".deepspeed_env").read_text().splitlines(keepends=True):
        runner.add_export(*line.split("=", maxsplit=1))  # as deepspeed.launcher.runner does
    command, _, _ = runner.get_cmd({}, {"node1": [0]})
    exports = next(word for word in command if str(word).startswith("export "))
    told = subprocess.run(
        ["bash", "-c", exports + "env"], check=True, capture_output=True, text=True, env={}
    ).stdout.splitlines()
    assert {f"PATH={given['PATH']}", "OMP_NUM_THREADS=1", "NCCL_DEBUG=WARN"} <= set(told)


def test_an_evaluation_hands_its_options_on(tmp_path: Path):
    """Past torch's launcher, whose own options begin like some of them."""
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$*"\n')
    (tmp_path / "srun").chmod(0o755)
    options = ["--generator", "g", "--out", "o", "--num", "5", "--inception=i.pt", "--vae", "v"]
    command = ["bash", str(ROOT / "slurm" / "evaluate.sbatch"), f"{tmp_path}/new/r.npz", "data"]
    place = {"SID_SCALE_HOME": str(ROOT), "SLURM_JOB_ID": "7", "SLURM_GPUS_PER_NODE": "a100:8"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    told = subprocess.run(
        [*command, *options],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, **place, "PATH": path, "SID_SCALE_VENV": sys.prefix},
    ).stdout
    lines = [line for line in told.splitlines() if line.startswith("python ")]
    first, second = (get_args_parser().parse_args(line.split()[3:]) for line in lines)
    assert first.nproc_per_node == "8"
    assert first.training_script == second.training_script == "sid_scale"
    reference = ["--reference", f"{tmp_path}/new/r.npz"]
    assert second.training_script_args == ["evaluate", "run", *reference, *options]
    made = [
        "evaluate",
        "reference",
        "--data",
        "data",
        "--metrics",
        "fid",
        "--inception=i.pt",
        "--vae",
        "v",
    ]
    assert [a for a in first.training_script_args if a not in ("--out", reference[1])] == made


FAKES = {
    "bin/python": """#!/bin/sh
        echo "$*" >>"$LOG"
        case "$*" in
            *"sick_nodes begin"*) exit 143 ;;
            *"sick_nodes leave-out"*) echo same ;;
            *jobs.requeue*) exit 75 ;;
        esac""",
    "scontrol": """#!/bin/sh
        echo "scontrol $*" >>"$LOG"
        case "$*" in
            *"show job"*) echo "JobId=7 JobState=RUNNING Partition=main" ;;
            requeue*) kill -TERM "$PPID" ;;
        esac""",
    "srun": '#!/bin/sh\necho "gpus on node1: 1"',
}


@pytest.mark.faults
def test_a_start_that_is_killed_before_its_ranks_is_followed_by_another(tmp_path: Path):
    """As by the signal of a preemption: SLURM's programs and Python are stand-ins here."""
    (tmp_path / "bin").mkdir()
    for name, text in FAKES.items():
        (tmp_path / name).write_text(text + "\n")
        (tmp_path / name).chmod(0o755)
    place = {"SID_SCALE_HOME": str(ROOT), "SID_SCALE_VENV": str(tmp_path), "SLURM_JOB_ID": "7"}
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / "distill.sbatch"), "run.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **place, "PATH": path, "LOG": str(tmp_path / "log")},
    )
    assert done.returncode == 75, done.stdout + done.stderr
    called = (tmp_path / "log").read_text()
    assert "-m sid_scale.jobs.requeue --status 143 --config run.yaml" in called
    assert "scontrol requeue 7" in called


@pytest.mark.faults
def test_a_job_that_slurm_refuses_takes_back_those_before(tmp_path: Path):
    programs = {
        "sbatch": f"echo x >>{tmp_path}/n; [ $(wc -l <{tmp_path}/n) -lt 3 ] || exit 1; echo 17",
        "scancel": f'echo "$@" >>{tmp_path}/cancelled',
    }
    for name, line in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    options = ["--images", ".", "--metrics", "fd_pixels", "--nodes", "1", "--gpus-per-node", "1"]
    settings = ["digits", f"teacher={TEACHER}", f"run_dir={tmp_path}/run", f"data={tmp_path}/data"]
    path = f"{tmp_path}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", PIPELINE, *options, *settings],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PATH": path, "SID_SCALE_VENV": sys.prefix},
    )
    assert done.returncode == 1
    assert done.stderr.count("error: ") == 1, done.stderr
    assert "error: cancelled what was submitted: 17 17" in done.stderr
    assert (tmp_path / "cancelled").read_text() == "17 17\n"


def test_the_network_file_gives_way_to_the_environment():
    command = ["bash", "-c", "set -a; source slurm/network.env; echo $NCCL_DEBUG $OMP_NUM_THREADS"]
    told = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "NCCL_DEBUG": "INFO"},
    ).stdout
    assert told == "INFO 1\n"


@pytest.mark.faults
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "none"], "error: --images: there is no none"),
        (["--images", "."], "error: teacher: there is no teachers/"),
        (["--images", "."], "error: metrics fid: need the Inception network"),
    ],
)
def test_what_would_fail_in_days_is_told_before_anything_is_submitted(
    tmp_path: Path, arguments: list[str], message: str
):
    arguments = [*arguments, "edm2-img512-xs-sida", "run_dir=run", "data=data"]
    if "teacher: " not in message:
        arguments.append(f"teacher={TEACHER}")
    done = subprocess.run(
        ["bash", PIPELINE, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 1
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["edm2-img512-xs-sida", "metod=sid"], "unknown key metod"),
        (["edm2-img512-xs-sida"], "--images: data/imagenet512 holds no shards yet"),
        (["edm2-img512-xs-sid", "data=null"], "--reference: this run reads no data"),
        (
            ["--images", "i", "--gpus-per-node", "7", "edm2-img512-xs-sida"],
            "is no multiple of micro_batch",
        ),
        (["--account", "lab", "edm2-img512-xs-sida"], "unknown option --account"),
        (["--sbatch", "--gres=gpu:4", "edm2-img512-xs-sida"], "say it by --gpus-per-node"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str):
    told = plan(*arguments, expect=1)
    [line] = [line for line in told.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in told
