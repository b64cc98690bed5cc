"""What SLURM knows of a job and of its cluster's nodes, as slurm/common.sh hands it on.

In a container there is no `scontrol`: the scripts ask, and this reads the answers. They are the
line of `scontrol --oneliner show job`, lines such as `ExcNodeList node1 node2` with the job's lists
of nodes in full, and the lines of `scontrol --oneliner show node`.
"""

import re
import time
from collections.abc import Collection
from typing import NamedTuple

# Words in a node's state with which no job starts there.
UNUSABLE = {
    *("DOWN", "DRAIN", "DRAINING", "DRAINED", "FAIL", "FAILING", "ERROR", "UNKNOWN", "FUTURE"),
    *("MAINT", "MAINTENANCE", "NOT_RESPONDING", "INVAL", "INVAL_REG", "RESERVED"),
}
LOST = {"DOWN", "FAIL", "ERROR", "NOT_RESPONDING"}
CLOCKS_SECONDS = 5.0  # that the nodes' clocks may differ


class Node(NamedTuple):
    """A node, as SLURM knows it."""

    state: frozenset[str]
    kind: tuple[str, ...]  # what jobs can ask for: features, GPUs, cores
    partitions: frozenset[str]
    booted: float  # seconds since 1970; 0: not known

    def is_lost_since(self, moment: float) -> bool:
        """Whether it does not answer, or has been started again since."""
        return bool(self.state & LOST) or self.booted > moment + CLOCKS_SECONDS


class Cluster(NamedTuple):
    """A job's view of its cluster; lists are of names."""

    job: str  # id; empty: SLURM did not answer
    wanted: int  # nodes that the job asks for
    partitions: frozenset[str]
    is_reserved: bool  # whether the job may only use what was reserved for it
    nodes_of_job: tuple[str, ...]
    required: frozenset[str]
    excluded: tuple[str, ...]
    nodes: dict[str, Node]

    def can_do_without(self, name: str, excluded: Collection[str]) -> bool:
        """Whether enough nodes like this one are left if neither it nor `excluded` is used."""
        node = self.nodes.get(name)
        if node is None or name in self.required or self.is_reserved:
            return False
        others = [
            other
            for other, facts in self.nodes.items()
            if other != name
            and other not in excluded
            and facts.kind == node.kind
            and facts.partitions & self.partitions
            and not facts.state & UNUSABLE
        ]
        return len(others) >= self.wanted


def read_cluster(text: str) -> Cluster:
    """What the scripts' answers say; what is missing is empty."""
    job: dict[str, str] = {}
    lists: dict[str, tuple[str, ...]] = {}
    nodes = {}
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        if first.startswith("JobId="):
            job = _fields(line)
        elif first.startswith("NodeName="):
            fields = _fields(line)
            nodes[fields["NodeName"]] = _node(fields)
        elif first.endswith("NodeList"):
            lists[first] = tuple(rest.split())
    return Cluster(
        job.get("JobId", ""),
        int(re.match(r"\d*", job.get("NumNodes", ""))[0] or 1),  # type: ignore[index]
        frozenset(job.get("Partition", "").split(",")),
        job.get("Reservation", "(null)") != "(null)",
        lists.get("NodeList", ()),
        frozenset(lists.get("ReqNodeList", ())),
        lists.get("ExcNodeList", ()),
        nodes,
    )


def _node(fields: dict[str, str]) -> Node:
    state = fields.get("State", "UNKNOWN")
    words = set(re.findall(r"[A-Z_]+", state)) | ({"NOT_RESPONDING"} if "*" in state else set())
    kind = tuple(fields.get(name, "") for name in ("ActiveFeatures", "Gres", "CPUTot"))
    partitions = frozenset(fields.get("Partitions", "").split(","))
    try:
        booted = time.mktime(time.strptime(fields.get("BootTime", ""), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        booted = 0.0
    return Node(frozenset(words), kind, partitions, booted)


def _fields(line: str) -> dict[str, str]:
    """`Name=value` pairs; of a name that comes again in free text behind, the first."""
    fields: dict[str, str] = {}
    for name, value in re.findall(r"(\S+?)=(\S*)", line):
        fields.setdefault(name, value)
    return fields
