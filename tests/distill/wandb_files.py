"""What an attempt has left in `run_dir/wandb`, as wandb's own records."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

HEAD = 7  # bytes of the file's head, and of each fragment's
BLOCK = 32_768


def attempts(run: Path) -> list[Path]:
    """The `.wandb` files of a run folder, in the order of their beginning."""
    return sorted((run / "wandb").glob("*run-*/*.wandb"), key=lambda path: path.stat().st_ctime)


def read_records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file: LevelDB's log format, in it one protobuf message a record."""
    data, at, message = path.read_bytes(), HEAD, b""
    while at + HEAD <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEAD:  # too small for a fragment's head
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        message += data[at + HEAD : at + HEAD + length]
        at += HEAD + length
        if kind in (1, 4):  # whole, or the last fragment
            yield Record.FromString(message)
            message = b""


def history(path: Path) -> list[dict[str, Any]]:
    """What was logged: a dictionary a step, with wandb's `_step`."""
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            row: dict[str, Any] = {}
            for item in record.history.item:
                *groups, name = item.nested_key or [item.key]
                inner = row
                for group in groups:  # of a picture: its path, width ...
                    inner = inner.setdefault(group, {})
                inner[name] = json.loads(item.value_json)
            rows.append(row)
    return rows


def run_of(path: Path) -> Any:
    """The last record that describes the run: id, project, config ..."""
    return [r.run for r in read_records(path) if r.WhichOneof("record_type") == "run"][-1]


def config_of(path: Path) -> dict[str, Any]:
    return {update.key: json.loads(update.value_json) for update in run_of(path).config.update}
