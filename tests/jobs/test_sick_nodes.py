"""Nodes that are to blame are left out for a day, as long as jobs can start without them."""

import io
import json
import time
from pathlib import Path

import pytest

from sid_scale.jobs.attempts import (
    FAILED,
    STOPPED,
    NodeEnd,
    Outcome,
    Start,
    attempt_folder,
    read_outcome,
    read_start,
    write_node_end,
    write_outcome,
    write_start,
)
from sid_scale.jobs.nodes import Cluster, read_cluster
from sid_scale.jobs.sick_nodes import (
    DAY,
    begin,
    found_at_end,
    judge_end,
    leave_out,
    main,
    read_sick_nodes,
)
from sid_scale.jobs.slurm import Job

NOW = 1_795_000_000.0
NODES = ["node1", "node2", "node3", "node4"]
WELL = "IDLE"
CRASHED = Outcome(FAILED, "connection closed", "rank 0 on node1")


def node_line(name: str, state: str = WELL, booted: float = NOW - 9 * DAY, **fields: str) -> str:
    told = {
        "NodeName": name,
        "Arch": "x86_64",
        "CPUTot": "8",
        "ActiveFeatures": "ib",
        "Gres": "gpu:a100:4",
        "State": state,
        "Partitions": "main,all",
        "BootTime": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(booted)),
        **fields,
        "Reason": "State=as you like [root@2026]",
    }
    return " ".join(f"{key}={value}" for key, value in told.items())


def cluster(
    *lines: str, here: str = "node1 node2", excluded: str = "", required: str = "", **job: str
) -> Cluster:
    """What SLURM knows of job 17 on two of four nodes; lines replace those of nodes."""
    nodes = {name: node_line(name) for name in NODES}
    nodes |= {line.split()[0].removeprefix("NodeName="): line for line in lines}
    told = {"JobId": "17", "Partition": "main", "NumNodes": "2", "Features": "ib", **job}
    lists = {"NodeList": here, "ExcNodeList": excluded, "ReqNodeList": required}
    return read_cluster(
        "\n".join(
            [
                " ".join(f"{key}={value}" for key, value in told.items()),
                *(f"{name} {names}" for name, names in lists.items() if names),
                *nodes.values(),
            ]
        )
    )


def attempt(run_dir: Path, restarts: int, *, judged: bool = False) -> Path:
    folder = attempt_folder(run_dir, f"17-{restarts}")
    write_start(folder, Start(NOW - 3600, ["node1", "node2"], judged))
    return folder


def with_sick(run_dir: Path, *names: str) -> None:
    """A run that found these nodes sick just now, in its first attempt."""
    folder = attempt(run_dir, 0)
    write_outcome(folder, Outcome(FAILED, "a product is wrong\nremedy", sick_nodes=names))
    judge_end(run_dir, folder)


KILLED, OUT_OF_MEMORY, FAILING = NodeEnd(247, False), NodeEnd(247, True), NodeEnd(1, False)


@pytest.mark.parametrize(
    ("outcome", "ends", "sick"),
    [
        (Outcome(FAILED, "no product", sick_nodes=("node2",)), {}, ["node2"]),
        (CRASHED, {"node1": FAILING, "node2": KILLED}, ["node2"]),
        (CRASHED, {"node2": KILLED}, ["node2"]),  # SLURM was quicker than node1
        (None, {"node1": FAILING, "node2": NodeEnd(139, False)}, ["node2"]),
        (CRASHED, {"node1": FAILING, "node2": FAILING}, []),  # who tells first is a victim
        (CRASHED, {"node1": FAILING, "node2": OUT_OF_MEMORY}, []),
        (CRASHED, {"node1": KILLED, "node2": KILLED}, []),  # by whoever: not two nodes at once
        (CRASHED, {"node1": NodeEnd(250, False), "node2": FAILING}, []),  # NCCL's victims abort
        (Outcome(FAILED, "no such file", is_user_error=True), {"node2": KILLED}, []),
        (Outcome(STOPPED, "SIGTERM"), {"node1": FAILING, "node2": KILLED}, []),
        (None, {}, []),
    ],
)
def test_who_is_to_blame(outcome: Outcome | None, ends: dict[str, NodeEnd], sick: list[str]):
    assert list(found_at_end(outcome, ends, ["node1", "node2"])) == sick


def test_the_only_node_of_a_job_is_to_blame_for_its_device_alone():
    assert found_at_end(None, {"node1": KILLED}, ["node1"]) == {}
    failed = Outcome(FAILED, "no product", sick_nodes=("node1",))
    assert found_at_end(failed, {}, ["node1"]) == {"node1": "no product"}


def test_a_sick_node_is_left_out_and_told(tmp_path: Path):
    with_sick(tmp_path, "node2")
    excluded, messages = leave_out(tmp_path, Job("17", 0), cluster(), time.time())
    assert excluded == ["node2"]
    [told] = messages
    assert told.startswith("node2 is left out until ")
    assert told.endswith(": a product is wrong")


def test_a_day_later_it_is_used_again(tmp_path: Path):
    with_sick(tmp_path, "node2")
    leave_out(tmp_path, Job("17", 0), cluster(), time.time())
    later = cluster(excluded="node2", here="node1 node3")
    assert leave_out(tmp_path, Job("17", 1), later, time.time() + DAY - 60)[0] == ["node2"]
    excluded, messages = leave_out(tmp_path, Job("17", 1), later, time.time() + DAY + 60)
    assert excluded == []
    assert messages == ["node2 is used again: it was left out for a day"]


def test_a_user_s_own_list_stays(tmp_path: Path):
    with_sick(tmp_path, "node2")
    job, now = Job("17", 0), time.time()
    assert leave_out(tmp_path, job, cluster(excluded="node4"), now)[0] == ["node4", "node2"]
    both = cluster(excluded="node2 node4", here="node1 node3")
    assert leave_out(tmp_path, job, both, now)[0] == ["node4", "node2"]
    assert leave_out(tmp_path, job, both, now + 2 * DAY)[0] == ["node4"]
    # Of another job with that list all of it is the user's.
    other = cluster(excluded="node2 node4", here="node1 node3", JobId="18")
    assert leave_out(tmp_path, Job("18", 0), other, now + 2 * DAY)[0] == ["node2", "node4"]


def down(*names: str) -> list[str]:
    return [node_line(name, "DOWN*") for name in names]


@pytest.mark.parametrize(
    "here",
    [
        cluster(NumNodes="4"),
        cluster(*down("node3", "node4")),
        cluster(node_line("node3", "IDLE+DRAIN"), node_line("node4", "MIXED+MAINTENANCE")),
        cluster(node_line("node3", Gres="gpu:v100:4"), *down("node4")),
        cluster(node_line("node3", ActiveFeatures="eth"), *down("node4")),
        cluster(node_line("node3", Partitions="other"), *down("node4")),
        cluster(excluded="node3 node4"),
        cluster(required="node2"),
        cluster(Reservation="mine"),
        read_cluster(""),  # SLURM does not answer
    ],
)
def test_a_node_without_which_the_job_may_not_start_stays(tmp_path: Path, here: Cluster):
    with_sick(tmp_path, "node2")
    excluded, messages = leave_out(tmp_path, Job("17", 0), here, time.time())
    assert "node2" not in excluded
    assert messages == ["node2 is sick, but not left out: the job needs it to start"]


def test_busy_nodes_are_enough(tmp_path: Path):
    with_sick(tmp_path, "node2")
    busy = cluster(node_line("node3", "ALLOCATED"), node_line("node4", "MIXED+PLANNED"))
    assert leave_out(tmp_path, Job("17", 0), busy, time.time())[0] == ["node2"]


def test_no_more_than_three_are_left_out(tmp_path: Path):
    many = [f"many{n}" for n in range(9)]
    with_sick(tmp_path, *many[:4])
    here = cluster(*map(node_line, many))
    excluded, messages = leave_out(tmp_path, Job("17", 0), here, time.time())
    assert len(excluded) == 3
    assert messages[-1].endswith("is sick, but not left out: 3 are left out")


def test_a_node_that_slurm_has_lost_is_found_at_the_next_start(tmp_path: Path):
    attempt(tmp_path, 0)
    now = cluster(*down("node2"), here="node1 node3")
    again, messages = begin(tmp_path, Job("17", 1), now, NOW)
    assert not again
    assert messages == ["node2 is sick: SLURM lost it"]
    started = read_start(attempt_folder(tmp_path, "17-1"))
    assert started == Start(NOW, ["node1", "node3"])


def test_a_node_that_came_back_is_given_up(tmp_path: Path):
    attempt(tmp_path, 0)
    back = cluster(node_line("node2", booted=NOW - 600))
    again, messages = begin(tmp_path, Job("17", 1), back, time.time())
    assert again
    assert messages[-1] == "node2 is sick (SLURM lost it): queued again without it"
    assert read_outcome(attempt_folder(tmp_path, "17-1")).reason == "node2 is sick"
    assert leave_out(tmp_path, Job("17", 1), back, time.time())[0] == ["node2"]


def test_a_node_is_not_given_up_for_ever(tmp_path: Path):
    """SLURM may not do as it is told."""
    with_sick(tmp_path, "node2")
    fates = [begin(tmp_path, Job("17", n), cluster(), time.time())[0] for n in (1, 2, 3)]
    assert fates == [True, True, False]


@pytest.mark.parametrize("judged", [True, False])
def test_nodes_that_are_down_after_a_run_has_ended_well_are_not_sick(tmp_path: Path, judged: bool):
    folder = attempt(tmp_path, 0)
    if judged:  # at the end of the attempt: after which a node was started anew, for whatever
        write_outcome(folder, Outcome(STOPPED, "SIGUSR1"))
        assert judge_end(tmp_path, folder) == []
    rebooted = cluster(node_line("node2", booted=NOW - 600))
    assert begin(tmp_path, Job("17", 1), rebooted, NOW)[0] is not judged
    assert bool(read_sick_nodes(tmp_path).nodes) is not judged


def test_a_node_out_of_memory_is_told_and_used(tmp_path: Path):
    folder = attempt(tmp_path, 0)
    write_node_end(folder, "node2", OUT_OF_MEMORY)
    assert judge_end(tmp_path, folder) == ["node2 ran out of host memory, which is not its fault"]
    assert read_sick_nodes(tmp_path).nodes == {}


WRONG = {"nodes": {"node2": {"since": "yesterday", "why": "it is slow"}}}


@pytest.mark.parametrize(
    "text",
    [
        '{"nodes": {"node2"',
        "[]",
        json.dumps(WRONG),
        json.dumps({"nodes": {}, "left_out": None}),
        json.dumps({"nodes": {"node2": {"since": NOW, "why": None}}}),
    ],
)
def test_a_damaged_file_is_no_file(tmp_path: Path, text: str):
    (tmp_path / "sick_nodes.json").write_text(text)
    assert begin(tmp_path, Job("17", 0), cluster(), NOW) == (False, [])
    assert leave_out(tmp_path, Job("17", 0), cluster(), NOW) == ([], [])


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        ("nodes.json", {"time": 1, "nodes": None}),
        ("node-node1.json", {"status": "137", "killed_for_memory": False, "node": 1}),
        ("node-node1.json", {"status": [137], "killed_for_memory": False}),
        ("outcome.json", {"kind": FAILED, "sick_nodes": 3}),
        ("outcome.json", {"kind": FAILED, "reason": None, "sick_nodes": ["node2"]}),
    ],
)
def test_a_damaged_record_of_a_start_blames_nobody(tmp_path: Path, record: str, wrong: dict):
    folder = attempt(tmp_path, 0)
    write_outcome(folder, CRASHED)
    write_node_end(folder, "node1", NodeEnd(1, killed_for_memory=False))
    (folder / record).write_text(json.dumps(wrong))
    assert judge_end(tmp_path, folder) == []
    assert read_sick_nodes(tmp_path).nodes == {}


@pytest.mark.parametrize("since", [NOW + 2 * DAY, float("nan")])
def test_what_a_wrong_clock_has_written_is_over(tmp_path: Path, since: float):
    known = {"nodes": {"node2": {"since": since, "why": "it is slow"}}}
    (tmp_path / "sick_nodes.json").write_text(json.dumps(known))
    assert leave_out(tmp_path, Job("17", 0), cluster(), NOW) == ([], [])


def test_clocks_may_differ_by_a_little(tmp_path: Path):
    known = {"nodes": {"node2": {"since": NOW + 2, "why": "it is slow"}}}
    (tmp_path / "sick_nodes.json").write_text(json.dumps(known))
    assert leave_out(tmp_path, Job("17", 0), cluster(), NOW)[0] == ["node2"]


def test_the_job_s_script_gets_folder_and_list(tmp_path: Path, monkeypatch, capsys):
    config = tmp_path / "run.yaml"
    text = "method: sid\nteacher: t\ndeepspeed: d\ntotal_images: 8192"
    config.write_text(f"run_dir: elsewhere\n{text}\n")
    with_sick(tmp_path / "run", "node2")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    known = "JobId=17 Partition=main NumNodes=2\nNodeList node1 node2\nExcNodeList node4\n{}"
    lines = "\n".join(node_line(name) for name in [*NODES, "node5"])
    outputs = {}
    for when, status in (("begin", 75), ("leave-out", 0)):
        monkeypatch.setattr("sys.stdin", io.StringIO(known.format(lines)))
        settings = [f"run_dir={tmp_path / 'run'}", "seed=3"]  # behind the YAML, as sbatch has them
        assert main([when, "--config", str(config), *settings]) == status
        outputs[when] = capsys.readouterr().out
    assert outputs == {
        "begin": f"{tmp_path}/run/logs/17-1\n",
        "leave-out": "node4,node2\n",
    }
