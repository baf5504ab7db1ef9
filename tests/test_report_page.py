"""The page in a real browser: no error, no request, filters that work: pytest tests/test_report_page.py

Screenshots are kept under build/report-page (or ALIGNFLOW_SCREENSHOTS), for a person to look at.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import EXECUTABLE, Browser
from invented_study import HOSTILE, sweep

from alignment_core.report import render

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(EXECUTABLE is None, reason="no chromium on PATH: apt-get install chromium to run this test"),
]
SHOTS = Path(os.environ.get("ALIGNFLOW_SCREENSHOTS") or Path(__file__).parents[1] / "build" / "report-page")
SECTIONS = ("answers", "run", "training", "failures", "samples", "deliverables", "published", "cost", "stages")
COUNT = "document.querySelectorAll('#sample-list article').length"
SAID = "document.getElementById('sample-count').textContent"
WIDE = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with everything on it, hostile text and a huge one included."""
    data = sweep()
    run = "grpo/lr/0.0002/seed0"
    huge = [{"step": 99, "response": "y" * 3_000_000, "reward": 0.5}, {"step": 100, "response": HOSTILE, "reward": 1.0}]
    shown = data.model_copy(update={"rollouts": data.rollouts | {run: [*data.rollouts[run], *huge]}})
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(render(shown), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        SHOTS.mkdir(parents=True, exist_ok=True)
        yield opened


def assert_quiet(browser: Browser, page: Path) -> None:
    """Nothing was complained of, and nothing but the page itself was asked for."""
    assert browser.complaints() == []
    assert browser.requests() == [page.resolve().as_uri()]


def test_it_opens_without_an_error_or_a_request(browser: Browser, page: Path) -> None:
    browser.resize(1280, 900)
    browser.open(page)
    assert browser.run("document.readyState") == "complete"
    assert browser.run("document.title") == "Study sweep"
    assert_quiet(browser, page)
    for section in SECTIONS:
        browser.screenshot(SHOTS / f"desktop-{section}.png", f"#{section}")
    assert_quiet(browser, page)


def test_the_policy_stops_other_scripts_styles_and_requests(browser: Browser, page: Path, tmp_path: Path) -> None:
    attack = "<script>document.title = 'owned'</script><style>body{display:none}</style><p style='color: red'>x</p>"
    attack += "<img src='https://evil.example/x.png' onerror='document.title = 1'>"
    attack += "<script src='https://evil.example/x.js'></script>"
    edited = tmp_path / "edited.html"
    edited.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{attack}"), encoding="utf-8")
    browser.open(edited)
    assert browser.run("document.title") == "Study sweep"
    assert browser.run("getComputedStyle(document.body).display") == "block"
    stopped = " ".join(browser.complaints())
    for directive in ("script-src", "style-src", "default-src"):
        assert directive in stopped
    # The tools tell of a request as it is asked for; the policy stops it before it leaves.
    assert sorted(browser.stopped()) == ["https://evil.example/x.js", "https://evil.example/x.png"]
    assert set(browser.requests()) == {edited.resolve().as_uri(), *browser.stopped()}


def test_filters_narrow_the_samples(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run(COUNT) == 20
    total = int(browser.run(SAID).split(" of ")[1].split()[0])
    browser.run("document.getElementById('sample-more').click()")
    assert browser.run(COUNT) == 40
    browser.type("#filter-text", "3 + 5 is 24")
    assert browser.run(SAID) == f"8 of {total} samples, 8 shown"
    browser.choose("#filter-run", "grpo/lr/2e-05/seed1")
    assert browser.run(COUNT) == 1
    assert "3 + 5 is 24 " in browser.run("document.querySelector('#sample-list pre').textContent")
    browser.type("#filter-text", "NO SUCH TEXT")
    assert (browser.run(COUNT), browser.run(SAID)) == (0, f"0 of {total} samples, 0 shown")
    browser.type("#filter-text", "")
    browser.type("#filter-from", "8")
    browser.type("#filter-to", "16")
    assert browser.run(COUNT) == 3
    browser.choose("#filter-reward", "some")
    assert browser.run(COUNT) == 0
    browser.type("#filter-to", "")
    assert browser.run(COUNT) == 5
    browser.choose("#filter-reward", "")
    browser.choose("#filter-run", "")
    browser.type("#filter-from", "")
    browser.choose("#filter-kind", "solved")
    assert browser.run(COUNT) == 1
    assert_quiet(browser, page)


def test_hostile_and_huge_texts_are_only_text(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.choose("#filter-run", "grpo/lr/0.0002/seed0")
    browser.type("#filter-from", "99")
    assert browser.run(COUNT) == 2
    texts = browser.run("[...document.querySelectorAll('#sample-list article > pre')].map((e) => e.textContent)")
    assert texts[0].endswith("2,996,000 more characters")
    assert "<script>alert(1)</script>" in texts[1]
    assert "⟨U+202E⟩" in texts[1]
    inside = "document.querySelectorAll('#sample-list img, #sample-list script, #sample-list svg').length"
    assert browser.run(inside) == 0
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run(f"document.body.innerText.includes({json.dumps(chr(0x202E))})") is False
    assert_quiet(browser, page)


def test_a_key_is_selected_whole(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelector('.keys').open = true")
    key = browser.run("document.querySelector('.keys code.full').textContent")
    assert key == "grade/abcdef0123456789"
    assert browser.run("getComputedStyle(document.querySelector('.keys code.full')).userSelect") == "all"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways(browser: Browser, page: Path, theme: str) -> None:
    browser.resize(360, 780, mobile=True)
    browser.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    browser.open(page)
    assert browser.run(WIDE) is False
    browser.run("document.querySelectorAll('details').forEach((e) => { e.open = true; })")
    assert browser.run(WIDE) is False
    browser.open(page)
    for section in ("answers", "training", "samples"):
        browser.screenshot(SHOTS / f"phone-{theme}-{section}.png", f"#{section}", tallest=3000)
    assert_quiet(browser, page)


def test_it_prints(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setEmulatedMedia", features=[])
    browser.resize(1280, 900)
    browser.open(page)
    assert browser.print(SHOTS / "print.pdf").read_bytes().startswith(b"%PDF")
    browser.ask("Emulation.setEmulatedMedia", media="print")
    assert browser.run("getComputedStyle(document.querySelector('#browser')).display") == "none"
    browser.ask("Emulation.setEmulatedMedia", media="")
    assert_quiet(browser, page)


def test_without_scripts_the_page_still_shows_rollouts(browser: Browser, page: Path) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.run("document.getElementById('browser').hidden") is True
        assert browser.run("document.querySelectorAll('#samples details article').length") > 20
        browser.screenshot(SHOTS / "no-script-samples.png", "#samples", tallest=1500)
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert_quiet(browser, page)
