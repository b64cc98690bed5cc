"""Plots as SVG for the page."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from sid_scale.report.curves import Curve, Level
from sid_scale.report.plots import draw

HOSTILE = '<script>alert("$x$")</script> --> #0a0b01 _'


def curve(run: str = "run", values: tuple[float, ...] = (3.0, 2.0, 1.0)) -> Curve:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    return Curve(run, x, x, y, y, y)


def test_colours_are_the_pages():
    svg = draw([curve()], name="p", over="images", levels=[Level("t", 1.5)], description="d")
    assert svg is not None
    assert "var(--series-0)" in svg
    assert "var(--level-0)" in svg
    assert not re.findall(r"#[0-9a-f]{6}\b", svg)  # nor black, the same on dark paper


def test_a_run_keeps_its_colour_where_another_has_no_curve():
    svg = draw([None, curve()], name="p", over="images", description="d")
    assert svg is not None
    assert "var(--series-1)" in svg
    assert "var(--series-0)" not in svg


def test_ids_are_those_of_the_plot_alone():
    a, b = (draw([curve()], name=name, over="images", description="d") for name in ("a", "b"))
    assert a is not None
    assert b is not None
    ids = [set(re.findall(r'\bid="([^"]*)"', svg)) for svg in (a, b)]
    assert not ids[0] & ids[1]
    used = set(re.findall(r'(?:url\(|href=")#([^")]*)', a))
    assert used <= ids[0]


def test_the_same_curves_give_the_same_bytes():
    first, second = (draw([curve()], name="p", over="images", description="d") for _ in range(2))
    assert first == second


def test_names_are_text_whatever_is_in_them():
    levels = [Level("_" + HOSTILE, 1.5), Level("x" * 300, 1.2)]
    svg = draw([curve(HOSTILE)], name="p", over="images", levels=levels, description=HOSTILE)
    assert svg is not None
    texts = [element.text or "" for element in ET.fromstring(str(svg)).iter()]
    assert sum(text.startswith("<script>alert") for text in texts) == 2  # title and legend
    assert any(text.strip().startswith("_<script>") for text in texts)
    assert max(map(len, texts)) < 60


def test_small_values_of_several_sizes_get_a_logarithmic_axis():
    svg = draw([curve(values=(1.0, 0.1, 0.01))], name="p", over="images", description="d")
    assert svg is not None
    assert {">0.01<", ">0.1<", ">1<"} <= set(re.findall(r">[\d.]+<", svg))
    assert draw([curve(values=(1.0, 0.0, -5.0))], name="p", over="images", description="d")


def test_a_logarithmic_axis_of_many_sizes_is_marked_at_powers_of_ten():
    values = tuple(10.0**i for i in range(-3, 4))
    svg = draw([curve(values=values)], name="p", over="images", description="d")
    assert svg is not None
    texts = set(re.findall(r">([\d.]+)<", svg))
    assert {"0.01", "1", "100"} <= texts
    assert not {"0.2", "5", "50"} & texts


def test_a_count_that_stays_at_nothing_has_no_negative_axis():
    svg = draw([curve(values=(0.0, 0.0, 0.0))], name="p", over="images", description="d")
    assert svg is not None
    assert "\N{MINUS SIGN}" not in svg


def test_what_is_no_curve_is_not_drawn():
    no_hours = Curve("r", np.arange(3.0), np.full(3, np.nan), *[np.ones(3)] * 3)
    assert draw([no_hours], name="p", over="hours", description="d") is None
    assert draw([no_hours], name="p", over="images", description="d") is not None
    assert draw([curve(values=(1.0,))], name="p", over="images", description="d") is None
    level = Level("teacher", 2.0)
    assert draw([curve(values=(1.0,))], name="p", over="images", levels=[level], description="d")
    assert draw([None], name="p", over="images", levels=[level], description="d") is None


def test_minutes_for_short_runs():
    short = Curve("r", np.arange(3.0), np.arange(3.0) / 60, *[np.ones(3)] * 3)
    svg = draw([short], name="p", over="hours", description="d")
    assert svg is not None
    assert "minutes of training" in svg
