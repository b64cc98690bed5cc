"""A real browser without a window: Debian's chromium, driven through chromedriver."""

import base64
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

DRIVER, BROWSER = "chromedriver", "chromium"


def needed() -> None:
    """Skips a test where there is no browser; where CI is to have one, that is a failure."""
    missing = [program for program in (BROWSER, DRIVER) if shutil.which(program) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"{' and '.join(missing)} not installed (Debian: chromium, chromium-driver)")
    assert not missing, f"{' and '.join(missing)}: not installed, but CI is to try the page"


@contextmanager
def browser(
    width: int = 1200, height: int = 900, *, scheme: str = "light", javascript: bool = True
) -> Iterator[webdriver.Chrome]:
    """A browser with a window of that many CSS pixels, in a light or dark colour scheme."""
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--hide-scrollbars")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    if not javascript:
        content = {"profile.managed_default_content_settings.javascript": 2}
        options.add_experimental_option("prefs", content)
    options.binary_location = shutil.which(BROWSER) or BROWSER
    service = webdriver.ChromeService(shutil.which(DRIVER) or DRIVER)
    driver = webdriver.Chrome(options, service)
    try:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        yield driver
    finally:
        driver.quit()


def open_page(driver: webdriver.Chrome, page: Path) -> None:
    driver.get(page.resolve().as_uri())


def requested(driver: webdriver.Chrome) -> list[str]:
    """Addresses of everything that was asked for since the last call."""
    log: list[dict[str, Any]] = driver.get_log("performance")
    messages = [json.loads(entry["message"])["message"] for entry in log]
    return [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]


def complaints(driver: webdriver.Chrome) -> list[str]:
    """What the browser's console holds."""
    return [entry["message"] for entry in driver.get_log("browser")]


def print_media(driver: webdriver.Chrome, scheme: str) -> None:
    """The page as it is printed, by someone whose screen has that colour scheme."""
    feature = {"name": "prefers-color-scheme", "value": scheme}
    media = {"media": "print", "features": [feature]}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def text_colours(driver: webdriver.Chrome) -> set[tuple[str, str]]:
    """Colours of every text on the page, also in drawings, with those behind them."""
    return {
        tuple(pair)
        for pair in driver.execute_script(
            """
            const clear = "rgba(0, 0, 0, 0)", pairs = [];
            for (const element of document.body.querySelectorAll("*")) {
              const text = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
              if (!text || ["STYLE", "title"].includes(element.tagName)) continue;
              const style = getComputedStyle(element), drawn = element.closest("svg");
              let below = element;
              while (below && getComputedStyle(below).backgroundColor === clear)
                below = below.parentElement;
              pairs.push([drawn ? style.fill : style.color,
                          getComputedStyle(below || document.body).backgroundColor]);
            }
            return pairs;
            """
        )
    }


def variables(driver: webdriver.Chrome, *prefixes: str) -> dict[str, str]:
    """The style sheet's colours whose names begin so, as `rgb(...)`."""
    return driver.execute_script(
        """
        const probe = document.body.appendChild(document.createElement("i")), found = {};
        for (const rule of document.styleSheets[0].cssRules) {
          if (rule.selectorText !== ":root") continue;
          for (const name of rule.style) {
            if (![...arguments].some(prefix => name.startsWith("--" + prefix))) continue;
            probe.style.color = `var(${name})`;
            found[name] = getComputedStyle(probe).color;
          }
        }
        probe.remove();
        return found;
        """,
        *prefixes,
    )


def broken_images(driver: webdriver.Chrome) -> list[str]:
    """Alternative texts of images that show nothing."""
    return driver.execute_script(
        "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0)"
        ".map(i => i.alt || i.src.slice(0, 60))"
    )


def overflow(driver: webdriver.Chrome) -> int:
    """CSS pixels by which the page is wider than its window."""
    return driver.execute_script(
        "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )


def screenshot(driver: webdriver.Chrome, file: Path) -> None:
    """The whole page, from top to bottom."""
    shot = {"captureBeyondViewport": True, "format": "png"}
    file.write_bytes(
        base64.b64decode(driver.execute_cdp_cmd("Page.captureScreenshot", shot)["data"])
    )
