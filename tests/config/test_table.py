"""docs/configuration.md is what the dataclasses say."""

from sid_scale.config.table import page
from tests.conftest import ROOT


def test_the_page_is_up_to_date():
    remedy = "run python -m sid_scale.config.table > docs/configuration.md"
    assert (ROOT / "docs" / "configuration.md").read_text() == page(), remedy


def test_every_setting_says_what_it_means():
    rows = [line.split(" | ") for line in page().splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert not [row[0] for row in rows if not row[3].strip(" |")]


def test_limits_and_defaults_are_shown():
    rows = {line.split(" | ")[0]: line for line in page().splitlines()}
    assert "whole number, at least 1 | required |" in rows["| `total_images`"]
    assert "number, above 0, at most 1000 | `800.0` |" in rows["| `objective.tmax`"]
    assert "stop, skip | `stop`" in rows["| `stream.on_bad_sample`"]
    assert "group or null | `null` |" in rows["| `log.wandb`"]
    assert "text | required |" in rows["| `log.wandb.project`"]
