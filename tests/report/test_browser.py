"""The page in a real browser: nothing missing, nothing fetched, nothing cut off."""

import re
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from sid_scale.report.making import inspect
from sid_scale.report.page import render
from sid_scale.report.read import read_runs
from tests.generators.tiny import tiny_generator
from tests.report import browser
from tests.report.folders import options, page_of, write_records, write_run
from tests.tiny import write_data

pytestmark = pytest.mark.browser
DESK, PHONE, PAPER = (1200, 900), (390, 844), (718, 1000)  # A4, without its margins
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


def contrast(a: str, b: str) -> float:
    """Of two colours, as WCAG 2 has it: from 1 to 21."""

    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def axes_shown(driver: webdriver.Chrome) -> set[str]:
    """Axes of the plots that are seen; every plot shows one drawing."""
    shown = set()
    for plot in driver.find_elements(By.CSS_SELECTOR, ".plots figure"):
        if plot.is_displayed():
            [drawing] = [d for d in plot.find_elements(By.TAG_NAME, "svg") if d.is_displayed()]
            shown.add(drawing.find_element(By.TAG_NAME, "title").get_attribute("textContent"))
    return {title.rpartition(" over ")[2] for title in shown if title}


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


@pytest.mark.parametrize("size", [DESK, PHONE], ids=["desk", "phone"])
def test_one_key_puts_every_plot_over_the_other_axis(page: Path, size: tuple[int, int]):
    with browser.browser(*size) as driver:
        browser.open_page(driver, page)
        assert axes_shown(driver) == {"images seen"}
        for _ in range(5):  # links to the runs come first
            ActionChains(driver).send_keys(Keys.TAB).perform()
            focused = driver.switch_to.active_element
            if focused.get_attribute("name") == "axis":
                break
        assert focused.get_attribute("id") == "axis-images"
        assert focused.value_of_css_property("outline-style") == "solid"
        focused.send_keys(Keys.ARROW_RIGHT)
        assert driver.switch_to.active_element.get_attribute("id") == "axis-hours"
        assert axes_shown(driver) == {"training time"}
        for summary in driver.find_elements(By.TAG_NAME, "summary"):
            summary.send_keys(Keys.ENTER)
        assert axes_shown(driver) == {"training time"}
        driver.switch_to.active_element.send_keys(Keys.END)
        bar = driver.find_element(By.CLASS_NAME, "switch")
        assert driver.execute_script("return arguments[0].getBoundingClientRect().top", bar) >= 0
        driver.find_element(By.CSS_SELECTOR, "label[for=axis-images]").click()
        assert axes_shown(driver) == {"images seen"}


def test_where_no_time_is_recorded_there_is_nothing_to_choose(tmp_path: Path):
    untimed = [{"images_seen": n, "loss/x": n / 7} for n in (10, 20, 30)]
    write_records(tmp_path / "run", untimed)
    (tmp_path / "report.html").write_text(page_of(tmp_path / "run"))
    with browser.browser(*DESK) as driver:
        browser.open_page(driver, tmp_path / "report.html")
        assert axes_shown(driver) == {"images seen"}
        assert not driver.find_elements(By.NAME, "axis")


def test_on_paper_it_is_light_and_shows_the_chosen_axis(page: Path):
    with browser.browser(*PAPER, scheme="dark") as driver:
        browser.open_page(driver, page)
        driver.find_element(By.ID, "axis-hours").click()
        browser.print_media(driver, "dark")
        assert axes_shown(driver) == {"training time"}
        assert not driver.find_element(By.CLASS_NAME, "switch").is_displayed()
        assert lightness(colours(driver)[0]) > 240
        assert browser.overflow(driver) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_stands_out_from_the_paper(page: Path, scheme: str):
    """By WCAG 2.1 AA: text 4.5 to 1, lines of plots 3 to 1."""
    with browser.browser(*DESK, scheme=scheme) as driver:
        browser.open_page(driver, page)
        texts = browser.text_colours(driver)
        assert len(texts) >= 4
        assert {pair: contrast(*pair) for pair in texts if contrast(*pair) < 4.5} == {}
        paper = driver.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
        lines = browser.variables(driver, "series", "level", "accent", "warn")
        assert len(lines) == 6 + 3 + 2
        faint = {name: contrast(line, paper) for name, line in lines.items()}
        assert {name: ratio for name, ratio in faint.items() if ratio < 3} == {}


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
        driver.find_element(By.CSS_SELECTOR, "label[for=axis-hours]").click()
        assert not driver.find_element(By.CLASS_NAME, "over-images").is_displayed()
        assert driver.find_element(By.CLASS_NAME, "over-hours").is_displayed()
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
