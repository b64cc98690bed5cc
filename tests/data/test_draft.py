"""A micro-batch in the making."""

from pathlib import Path

from sid_scale.config.groups import StreamConfig
from sid_scale.data.draft import Draft, Memory
from sid_scale.data.shard_readers import ShardSource
from tests.data.shards import write


def test_a_row_that_was_not_read_is_not_sound(tmp_path: Path) -> None:
    """What lies there is of the batch before."""
    source = ShardSource(write(tmp_path, 8, 8), StreamConfig())
    memory, shard = Memory(source, 4), source.open(0)
    for numbers, unsound in (([0, 1, 2, 3], []), ([4, 5], [2, 3])):
        stored, rows = memory.rows()
        draft = Draft(source, rows)
        draft.read(shard, numbers, 0)
        assert draft.unsound() == unsound
        assert stored[: len(numbers), 0, 0, 0].tolist() == numbers
    shard.close()
