"""The page in a real browser (headless Chromium): no console error, no request, and what one does with a page works."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_folders import NASTY, make_folder
from train.evaluation.page.render import write_page

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
selenium = pytest.importorskip("selenium", reason="selenium is not installed (extra dev)")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no Chromium with its driver: apt-get install chromium chromium-driver"
)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import Select, WebDriverWait  # noqa: E402

FIRST_PAINT_MS = 2000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = Options()
    options.binary_location = str(CHROMIUM)
    for argument in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "window-size=1200,900"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, *folders: Path) -> None:
    """Show the page of these runs, wait until it is drawn, and check that nothing went wrong or out."""
    path = folders[0].parent / "page.html"
    write_page(folders, path)
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(path.as_uri())
    WebDriverWait(browser, 30).until(lambda b: b.execute_script("return document.body.dataset.ready") == "yes")
    check_quiet(browser, path)


def check_quiet(browser: Any, path: Path) -> None:
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {path.as_uri()}


def rows(browser: Any) -> list[str]:
    """Names in the table of classes, as they stand."""
    names = "section.run:not([hidden]) table.classes tbody td.name"
    script = "return [...document.querySelectorAll(arguments[0])].map(cell => cell.textContent)"
    return browser.execute_script(script, names)


def column(browser: Any, field: str) -> list[str]:
    """Cells of a column of the table of classes, as they stand."""
    script = """const buttons = [...document.querySelectorAll('table.classes thead button')];
        const at = buttons.findIndex(button => button.dataset.field === arguments[0]) + 1;
        return [...document.querySelectorAll('table.classes tbody tr')].map(row => row.cells[at].textContent)"""
    return browser.execute_script(script, field)


def drawn_charts(browser: Any) -> int:
    """Those of the chosen run."""
    return len(browser.find_elements(By.CSS_SELECTOR, "section.run:not([hidden]) .chart[data-drawn=yes]"))


@pytest.mark.parametrize("classes", [1, 10, 120, 8142])
def test_pages_of_any_size_open_quickly_without_error_or_request(classes: int, browser: Any, tmp_path: Path) -> None:
    opened(browser, make_folder(tmp_path / "run-seed0", classes))
    paints = browser.execute_script("return performance.getEntriesByType('paint').map(p => p.startTime)")
    assert paints
    assert max(paints) < FIRST_PAINT_MS
    assert len(rows(browser)) == min(classes, 50)
    assert drawn_charts(browser) == 5
    assert browser.find_element(By.ID, "size-chart").get_attribute("data-drawn") == "yes"


def test_names_with_markup_stay_text(browser: Any, tmp_path: Path) -> None:
    opened(browser, make_folder(tmp_path / "run-seed0", 10))
    assert set(NASTY) <= set(rows(browser))
    assert browser.title == "run-seed0"
    assert browser.execute_script("return document.querySelectorAll('main b, img[src=x]').length") == 0
    assert "柴犬" in browser.find_element(By.CSS_SELECTOR, "table.pairs").text + "".join(rows(browser))


def test_the_table_sorts_filters_and_turns_pages_by_keyboard_and_mouse(browser: Any, tmp_path: Path) -> None:
    opened(browser, make_folder(tmp_path / "run-seed0", 8142))
    assert column(browser, "train") == sorted(column(browser, "train"), key=int, reverse=True)
    heading = browser.find_element(By.CSS_SELECTOR, "button[data-field=recall]")
    heading.send_keys(Keys.ENTER)
    recalls = [float(text) for text in column(browser, "recall")]
    assert recalls == sorted(recalls, reverse=True)
    browser.find_element(By.CSS_SELECTOR, "button[data-field=recall]").click()
    assert [float(text) for text in column(browser, "recall")] == [0.0] * 50
    assert heading.find_element(By.XPATH, "..").get_attribute("aria-sort") == "ascending"
    status = browser.find_element(By.CSS_SELECTOR, ".shown-rows")
    assert status.text == "1–50 of 8,142 classes"
    first = rows(browser)
    browser.find_element(By.CSS_SELECTOR, "button.next").click()
    assert status.text == "51–100 of 8,142 classes"
    assert not set(first) & set(rows(browser))
    filter_box = browser.find_element(By.CSS_SELECTOR, "input.filter")
    filter_box.send_keys("CLASS 777")
    assert set(rows(browser)) == {"class 777", *(f"class 777{k}" for k in range(10))}
    Select(browser.find_element(By.CSS_SELECTOR, "select.group")).select_by_visible_text("few")
    assert set(column(browser, "group")) == {"few"}
    filter_box.send_keys("no such class")
    assert (rows(browser), status.text) == ([], "no class")


def test_names_appear_where_one_points(browser: Any, tmp_path: Path) -> None:
    opened(browser, make_folder(tmp_path / "run-seed0", 3, names=["a & <b>", "second", "third"]))
    chart = browser.find_element(By.ID, "size-chart")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    tip = "const tip = document.getElementById('tip'); return tip.hidden ? '' : tip.textContent"
    found = set()
    for dot in chart.find_elements(By.CSS_SELECTOR, ".mark-symbol.role-mark path"):
        ActionChains(browser).move_to_element(dot).perform()
        deadline = time.monotonic() + 5
        while not (text := browser.execute_script(tip)):
            assert time.monotonic() < deadline, "no tip"
        found.add(text.splitlines()[0])
    assert {"a & <b>", "second", "third"} <= found


def test_several_runs_are_drawn_together_and_each_has_its_details(browser: Any, tmp_path: Path) -> None:
    first = make_folder(tmp_path / "first-seed0", 12)
    second = make_folder(tmp_path / "second-seed0", 12, seed=1)
    third = make_folder(tmp_path / "third-seed0", 5)
    opened(browser, first, second, third)
    assert len(rows(browser)) == 12
    headings = [b.text for b in browser.find_elements(By.CSS_SELECTOR, "section.run:not([hidden]) thead button")]
    assert "recall, second-seed0" in headings
    assert "recall, third-seed0" not in headings  # has other classes
    Select(browser.find_element(By.ID, "run-choice")).select_by_value("2")
    assert len(rows(browser)) == 5
    assert drawn_charts(browser) == 5
    check_quiet(browser, tmp_path / "page.html")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_scroll_sideways_on_a_phone_and_text_is_legible(scheme: str, browser: Any, tmp_path: Path) -> None:
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        opened(browser, make_folder(tmp_path / "run-seed0", 10))
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        style = browser.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        assert contrast(*style) > 7  # WCAG AAA
        assert len(browser.execute_cdp_cmd("Page.printToPDF", {})["data"]) > 50_000
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def contrast(first: str, second: str) -> float:
    """WCAG's ratio of two colours like "rgb(1, 2, 3)"."""

    def luminance(color: str) -> float:
        parts = [int(part) / 255 for part in color[color.index("(") + 1 : -1].split(",")[:3]]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_pages_without_results_have_no_errors_either(browser: Any, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "run-seed0", 10)
    for name in ("result.json", "per_class.csv", "predictions.csv", "thumbnails.json"):
        (folder / name).unlink()
    opened(browser, folder)
    assert "There are no test results" in browser.find_element(By.TAG_NAME, "main").text
