"""Arguments that several commands share."""

import argparse
from pathlib import Path

import pytest

from sid_scale.commands.arguments import byte_count, path


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


def test_home_and_environment_are_put_into_paths(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    monkeypatch.setenv("HOME", "/home/me")
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=path)
    assert parser.parse_args(["--out=~/x"]).out == Path("/home/me/x")
    assert parser.parse_args(["--out=$SCRATCH/x"]).out == Path("/scratch/x")
    with pytest.raises(SystemExit):
        parser.parse_args(["--out=$NOWHERE/x"])
    assert "$NOWHERE/x: the environment has no variable $NOWHERE" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "MB", "-1MB", "0", "5 parsecs", "1TBB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no size"):
        byte_count(text)
