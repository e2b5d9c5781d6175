"""The HTML report in a real browser, by clicking and typing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specrunner.reporters.html.page import render_page
from specrunner.results import Verdict
from tests.reporters.builders import make_case, make_check, make_result
from tests.reporters.hostile import make_rich_results
from tests.reporters.test_html import collect

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("html") / "report.html"
    path.write_bytes(render_page(collect(make_rich_results())))
    return path


class Page:
    """A page that is ready, with everything it complained about and asked the network for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)
        self.expect = pytest.importorskip("playwright.sync_api").expect
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: self.problems.append(message.text))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", timeout=120_000)

    def open_case(self, name: str) -> str:
        self.page.goto(self.page.url.split("#")[0] + "#/")
        self.page.wait_for_selector("#overview:not([hidden])")
        self.page.click(f"a.row:has(.id:text('{name}'))")
        self.page.wait_for_selector(f"#case:not([hidden]) h1:has-text('{name}')")
        return str(self.page.inner_text("#case"))

    def shows(self, selector: str, text: str) -> None:
        """Wait until an element holds a text: what a pointer or a key brings up is drawn a moment later."""
        self.expect(self.page.locator(selector)).to_contain_text(text, use_inner_text=True, timeout=120_000)

    def counts(self, selector: str, number: int) -> None:
        """Wait until so many elements are there."""
        self.expect(self.page.locator(selector)).to_have_count(number, timeout=120_000)


@pytest.fixture
def opened(browser: Any, rich: Path) -> Iterator[Page]:
    page = Page(browser, rich, color_scheme="light", viewport={"width": 1280, "height": 860})
    yield page
    assert page.problems == []
    assert len(page.requests) == 1  # the file itself
    page.context.close()


def names(opened: Page) -> list[str]:
    return [text.split("[")[0] for text in opened.page.locator("a.row .id").all_inner_texts()]


def test_filters_and_search(opened: Page) -> None:
    assert names(opened)[:4] == ["layers", "mask", "experts", "ties"]
    opened.page.click("button.chip:has-text('skipped')")
    assert names(opened) == ["lacks"]
    opened.page.click("button.chip:has-text('passed')")
    assert names(opened) == ["lacks", "diffusion", "passes"]
    opened.page.click("button.chip:has-text('passed')")
    opened.page.click("button.chip:has-text('skipped')")
    opened.page.fill("#search", "EXPERTS chose")
    assert names(opened) == ["experts"]
    opened.shows("#shown", "1 of 8 cases")
    opened.page.fill("#search", "no such case")
    assert "No case fits" in opened.page.inner_text("#list")


def test_a_failure_and_back(opened: Page) -> None:
    text = opened.open_case("layers")
    cause = opened.page.inner_text(".cause")
    assert "layers.2.output is the first that went wrong at token 1, 30 times what is allowed" in cause
    assert "the error is carried on" in cause
    assert "specrunner run 'specs/smoke/glass.yaml::layers" in cause
    assert "Error through the model" in text
    opened.counts(".chart circle.failed", 3)
    assert opened.page.locator(".chart .line-floor").get_attribute("d").count("L") == 5
    width = opened.page.locator(".chart").bounding_box()["width"]
    opened.page.locator(".chart").hover(position={"x": width - 10, "y": 50})
    opened.shows("#case", "logits: 0.018 · noise floor 0.0006 · 30.0 times it")
    opened.page.locator("canvas.map").focus()
    opened.page.keyboard.press("ArrowRight")
    opened.shows("#case", "layers.2.output, token 1: 0.012")
    opened.page.click("text=only those that failed")
    opened.counts("table.checks tbody tr", 3)
    opened.page.locator("table.checks details summary").first.click()
    opened.shows("table.checks", "peer_relative_l2")
    opened.page.click(".back")
    opened.page.wait_for_selector("#overview:not([hidden])")


def test_each_kind_of_evidence(opened: Page) -> None:
    mask = opened.open_case("mask")
    assert "1 pairs differ, the first at query 1, key 3" in mask
    maps = opened.page.locator("canvas.map")
    box = maps.nth(1).bounding_box()
    maps.nth(1).hover(position={"x": box["width"] * 0.9, "y": box["height"] * 0.4})
    opened.shows("#case", "query 1, key 3: expected not seen, found seen")
    experts = opened.open_case("experts")
    assert "decisive" in experts
    assert opened.page.locator(".expert.differs").all_inner_texts() == ["4", "9"]
    opened.open_case("ties")
    opened.counts("tr.wrong:has-text('told apart')", 1)
    assert opened.page.locator("td.first").all_inner_texts() == ["6", "60"]
    diffusion = opened.open_case("diffusion")
    assert "candidate: 2 passes" in diffusion
    assert "reference: 1 passes" in diffusion
    assert opened.page.locator("section:has(h2:text('Denoising')) td.differs").all_inner_texts() == ["1", "6", "0", "7"]


def test_hostile_text_is_inert(opened: Page) -> None:
    assert "· ·" not in opened.open_case("lacks")
    text = opened.open_case("evil")
    assert "</script><img src=x onerror='window.stolen=1'>" in text
    assert r"\x1b[31m\u202ereversed\x00" in text
    assert opened.page.evaluate("window.stolen") is None
    assert opened.page.locator("img, #case b").count() == 0


def test_the_keyboard_alone(opened: Page) -> None:
    page = opened.page
    page.keyboard.press("/")
    opened.counts("#search:focus", 1)
    page.keyboard.type("mask")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_selector("#case:not([hidden]) h1:has-text('mask')")
    page.keyboard.press("Escape")
    page.wait_for_selector("#overview:not([hidden])")
    opened.counts(".row:focus", 1)
    page.fill("#search", "")
    page.keyboard.press("Escape")
    page.keyboard.press("j")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.place") == "1"


def test_the_command_is_copied(browser: Any, rich: Path) -> None:
    opened = Page(browser, rich, permissions=["clipboard-read", "clipboard-write"])
    opened.open_case("passes")
    opened.page.click("button.copy")
    opened.page.wait_for_selector("button.copy:has-text('Copied')")
    copied = opened.page.evaluate("navigator.clipboard.readText()")
    assert copied == "specrunner run 'specs/smoke/glass.yaml::passes[engine=hf,dtype=bfloat16]'"
    opened.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button(browser: Any, rich: Path, scheme: str) -> None:
    opened = Page(browser, rich, color_scheme=scheme)

    def brightness() -> int:
        shown = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in shown.strip("rgb()").split(","))

    assert (brightness() > 384) == (scheme == "light")
    opened.page.click("#theme")
    assert brightness() > 384
    opened.page.click("#theme")
    assert brightness() < 384
    opened.context.close()


def test_a_long_cause_is_read_in_the_list(browser: Any, tmp_path: Path) -> None:
    """It takes two lines of its row, and no more than the row has."""
    message = "mean kl is between 0.0317 and 0.0421, and 0.001 is allowed, worst 0.209 at token 17, of 18 in all"
    checks = (make_check("logits", passed=False, message=message),)
    path = tmp_path / "r.html"
    path.write_bytes(render_page(collect([make_result(make_case("long"), Verdict.FAILED, checks=checks)])))
    opened = Page(browser, path, viewport={"width": 1000, "height": 860})
    sizes = opened.page.evaluate(
        "[...document.querySelectorAll('.row .message')].map((one) => [one.scrollWidth <= one.clientWidth,"
        " one.scrollHeight <= one.clientHeight, one.clientHeight <= one.parentElement.clientHeight])"
    )
    assert sizes == [[True, True, True]]
    opened.context.close()


def test_a_phone_holds_the_cause_on_its_first_screen(browser: Any, rich: Path) -> None:
    opened = Page(browser, rich, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    for name in ("layers", "mask", "experts", "ties", "diffusion", "evil"):
        opened.open_case(name)
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390, name
        if name not in ("diffusion", "evil"):
            assert opened.page.locator(".cause .why").bounding_box()["y"] < 500, name
    assert opened.problems == []
    opened.context.close()


def test_five_thousand_cases_are_drawn_a_screen_at_a_time(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "many.html"
    path.write_bytes(render_page(collect([make_result(make_case(f"case-{index:04}")) for index in range(5000)])))
    opened = Page(browser, path)
    assert opened.page.locator("a.row").count() < 60
    opened.page.evaluate("scrollTo(0, 100000)")
    opened.page.wait_for_selector("a.row:has-text('case-2000')")
    assert opened.page.locator("a.row").count() < 60
    opened.page.click("a.row:has-text('case-2000')")
    opened.page.wait_for_selector("#case h1:has-text('case-2000')")
    opened.page.click(".back")
    opened.page.wait_for_selector("a.row:has-text('case-2000')")
    opened.page.fill("#search", "case-4321")
    opened.counts("a.row", 1)
    opened.context.close()


def test_repeats_that_found_the_same_are_one_row(browser: Any, tmp_path: Path) -> None:
    checks = tuple(
        replace(make_check(passed=value < 2, max_abs=value), repeat=repeat)
        for repeat, value in enumerate([1.0, 2.0, 1.0], 1)
    )
    path = tmp_path / "report.html"
    path.write_bytes(render_page(collect([make_result(make_case("waver", repeat=3), Verdict.FAILED, checks=checks)])))
    opened = Page(browser, path)
    text = opened.open_case("waver")
    assert "Checks: 1 of 3 failed" in text
    assert opened.page.locator("table.checks td:nth-child(2) .small").all_inner_texts() == [
        "allclose, repeats 1, 3",
        "allclose, repeat 2",
    ]
    opened.page.click("section:has(table.checks) input[type=checkbox]")
    opened.counts("table.checks tbody tr", 1)
    opened.context.close()
