"""The report's page in a real browser: no errors, tables that search, a graph that finds, moves and zooms."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxprune

webdriver = pytest.importorskip("selenium.webdriver")
CHROME, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROME and DRIVER), reason="no Chromium with its driver here")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.Conv2d(24, 4, 1))
    small = fxprune.prune(net, "magnitude", 0.4, example_inputs=torch.randn(1, 3, 9, 9), progress=False)
    file = fxprune.report(small).to_html(
        tmp_path_factory.mktemp("page") / "report.html", samples={"dense": torch.zeros(2, 3, 8, 8)}
    )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROME
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    browser.set_page_load_timeout(300)
    browser.set_script_timeout(300)
    browser.get(Path(file).as_uri())
    yield browser
    browser.quit()


def _view(page: Any) -> list[float]:
    return [float(x) for x in page.find_element("css selector", "svg.graph").get_dom_attribute("viewBox").split()]


def test_the_console_is_silent(page: Any) -> None:
    assert page.find_element("tag name", "h1").text == "Sequential"
    assert page.get_log("browser") == []


def test_tables_search(page: Any) -> None:
    field = page.find_element("css selector", "[data-filter^=modules]")
    rows = page.find_elements("css selector", "#modules-1 tbody tr")
    field.send_keys("batchnorm")
    assert [r.text.split()[0] for r in rows if r.is_displayed()] == ["1"]
    for _ in "batchnorm":
        field.send_keys("\ue003")  # backspace
    assert all(r.is_displayed() for r in rows)


def test_the_graph_finds_and_zooms(page: Any) -> None:
    first = _view(page)
    field = page.find_element("css selector", "[data-find]")
    field.send_keys("3")
    found = page.find_elements("css selector", ".node.found")
    assert [n.get_attribute("data-name") for n in found] == ["3"]
    assert _view(page) != first
    before = _view(page)
    page.execute_script(
        "const s = document.querySelector('svg.graph'); const b = s.getBoundingClientRect();"
        "s.dispatchEvent(new WheelEvent('wheel', {deltaY: -100, clientX: b.x + 50, clientY: b.y + 50}))"
    )
    assert _view(page)[2] < before[2]
    page.find_element("css selector", "[data-whole]").click()
    whole = page.find_element("css selector", "svg.graph")
    assert _view(page)[2:] == [float(whole.get_attribute(f"data-{k}")) for k in ("width", "height")]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(page: Any, width: int) -> None:
    page.set_window_size(max(width, 500), 900)  # a headless window is no narrower; the frame below is
    page.execute_script("document.documentElement.style.width = arguments[0] + 'px'", width)
    assert page.execute_script("return document.body.scrollWidth") <= width
