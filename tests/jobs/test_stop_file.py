"""A request in a file is a signal to the process that watches it."""

import signal
import time
from pathlib import Path

import pytest

from sid_scale.errors import UsageError
from sid_scale.jobs import stop_file as module
from sid_scale.jobs.stop import stop_requests
from sid_scale.jobs.stop_file import StopFileError, request, stop_file, watched
from tests.launches import PATIENCE


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)


def wait_until(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_request_stops_the_run_even_if_it_was_made_before(tmp_path: Path, number: signal.Signals):
    with stop_file(tmp_path) as file, stop_requests(60) as requests:
        request(file, number)
        assert not requests.asked()
        with watched(file):
            wait_until(requests.asked)
        assert requests.reason == number.name
    assert list(tmp_path.iterdir()) == []


def test_each_request_counts_once(tmp_path: Path):
    received: list[int] = []
    with stop_file(tmp_path) as file, stop_requests(60) as requests:
        requests.receive = received.append
        with watched(file):
            request(file, signal.SIGUSR1)
            wait_until(lambda: received)
            request(file, signal.SIGTERM)
            wait_until(lambda: len(received) > 1)
    assert received == [signal.SIGUSR1, signal.SIGTERM]


@pytest.mark.faults
def test_other_lines_and_a_missing_file_are_passed_over(tmp_path: Path):
    with stop_file(tmp_path) as file, stop_requests(60) as requests, watched(file):
        file.write_bytes(b"SIGKILL\n\xff\n\nSIGTER")
        time.sleep(0.05)
        file.unlink()
        time.sleep(0.05)
        assert not requests.asked()
        file.write_bytes(b"SIGKILL\n\xff\n\nSIGTERM\n")
        wait_until(requests.asked)


@pytest.mark.faults
def test_a_node_that_does_not_see_the_file_says_so(tmp_path: Path):
    with pytest.raises(StopFileError, match=r"does not see .*/nowhere: .* all nodes see"):
        with watched(tmp_path / "nowhere"):
            pass


@pytest.mark.faults
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="absent cannot be written to"):
        with stop_file(tmp_path / "absent"):
            pass
