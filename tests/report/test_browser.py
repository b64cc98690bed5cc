"""The page in a real browser: nothing missing, nothing fetched, nothing cut off."""

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By

from sid_scale.report.making import inspect
from sid_scale.report.page import render
from sid_scale.report.read import read_runs
from tests.generators.tiny import tiny_generator
from tests.report import browser
from tests.report.folders import options, write_run
from tests.tiny import write_data

pytestmark = pytest.mark.browser
DESK, PHONE = (1200, 900), (390, 844)
LONG = "a_name_without_any_place_to_break_it_" * 8


@pytest.fixture(scope="module", autouse=True)
def _browser_is_here() -> None:
    browser.needed()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, one with all that a page can hold, and long names in it."""
    folder = tmp_path_factory.mktemp("runs")
    run, other = write_run(folder / "run"), write_run(folder / "other")
    tiny_generator(run / "generator")
    (run / "generator" / "classes.txt").write_text(f"ape\nbee\n{LONG}\n</script>\n")
    data = write_data(folder / "data")
    text = (run / "config.yaml").read_text().replace("/data/digits", str(data))
    (run / "config.yaml").write_text(text.replace("/models/digits", f"/models/{LONG}"))
    runs = read_runs([run, other])
    looks = {r.name: inspect(r, options(run, other, "--samples", 4)) for r in runs}
    assert looks["run"].findings is not None, looks["run"].reason
    (folder / "report.html").write_text(render(runs, looks))
    return folder / "report.html"


def colours(driver: webdriver.Chrome) -> tuple[str, str, str]:
    """Of the paper, the text, and a curve."""

    def of(selector: str, name: str) -> str:
        return driver.find_element(By.CSS_SELECTOR, selector).value_of_css_property(name)

    curve = "path[style*='--series-0']"
    return of("body", "background-color"), of("h1", "color"), of(curve, "stroke")


def lightness(colour: str) -> float:
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    return (red + green + blue) / 3


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_nothing_is_missing_fetched_or_cut_off(page: Path, size: tuple[int, int]):
    with browser.browser(*size) as driver:
        browser.open_page(driver, page)
        for summary in driver.find_elements(By.TAG_NAME, "summary"):
            summary.click()
        assert driver.find_elements(By.CSS_SELECTOR, "details[open] pre")
        images = driver.find_elements(By.TAG_NAME, "img")
        assert len(images) == 2 * 6 + 4 * 4
        assert browser.broken_images(driver) == []
        assert browser.overflow(driver) == 0
        assert browser.complaints(driver) == []
        requests = browser.requested(driver)
        assert page.resolve().as_uri() in requests
        assert {request.split(":")[0] for request in requests} <= {"file", "data"}
        assert [request for request in requests if request.startswith("file")] == [
            page.resolve().as_uri()
        ]
        plots = driver.find_elements(By.CSS_SELECTOR, ".plots svg")
        assert plots
        assert all(plot.size["width"] >= 250 for plot in plots if plot.is_displayed())


def test_it_works_without_javascript(page: Path):
    with browser.browser(*PHONE, javascript=False) as driver:
        probe = page.with_name("probe.html")
        probe.write_text("<title>off</title><script>document.title = 'on'</script>")
        browser.open_page(driver, probe)
        assert driver.title == "off"  # or the test would show nothing
        browser.open_page(driver, page)
        pre = driver.find_element(By.TAG_NAME, "pre")
        assert not pre.is_displayed()
        driver.find_element(By.XPATH, "//pre/../summary").click()
        assert pre.is_displayed()
        assert "method: sida" in pre.text
        assert browser.broken_images(driver) == []


def test_light_and_dark(page: Path):
    shown = {}
    for scheme in ("light", "dark"):
        with browser.browser(*DESK, scheme=scheme) as driver:
            browser.open_page(driver, page)
            shown[scheme] = colours(driver)
    paper, ink, curve = (
        (lightness(a), lightness(b)) for a, b in zip(shown["light"], shown["dark"])
    )
    assert paper[0] > 240 > 40 > paper[1]
    assert ink[0] < 60 < 200 < ink[1]
    assert abs(curve[0] - paper[0]) > 80
    assert abs(curve[1] - paper[1]) > 80


def test_the_test_would_see_what_it_looks_for(page: Path):
    """A page with every fault that the others exclude."""
    faulty = page.with_name("faulty.html")
    faulty.write_text(
        '<img src="data:image/png;base64,AAAA" alt="broken"><img src="http://127.0.0.1:9/x.png">'
        '<div style="width: 3000px">wide</div><script>console.error("complaint")</script>'
    )
    with browser.browser(*PHONE) as driver:
        browser.open_page(driver, faulty)
        assert "broken" in browser.broken_images(driver)
        assert browser.overflow(driver) > 2000
        assert any("complaint" in line for line in browser.complaints(driver))
        assert "http://127.0.0.1:9/x.png" in browser.requested(driver)
