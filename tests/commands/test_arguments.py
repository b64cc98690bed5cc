"""Arguments that several commands share."""

import pytest

from sid_scale.commands.arguments import byte_count


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512_000_000),
        ("1 GiB", 2**30),
        ("1.5kB", 1500),
        ("70000", 70_000),
        ("2M", 2 * 10**6),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert byte_count(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "5 parsecs", "1TBB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        byte_count(text)
