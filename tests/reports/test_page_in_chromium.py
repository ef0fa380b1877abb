"""Pages driven in a real Chromium, opened from disk as a user does. Skipped where there is none."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bigctl.reports import run, server, sweep
from bigctl.runs.directory import RunDirectory
from tests.reports import folders

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

LISTS = """{
  const ask = window.matchMedia.bind(window);
  window.lists = [];
  window.matchMedia = (query) => { window.lists.push(ask(query)); return window.lists.at(-1); };
}"""  # what a page asks of its screen, kept so that a test can tell it of a change


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of the ui over the runs and sweeps of the test's folder."""
    serving = server.listen(server.Site(tmp_path / "runs", tmp_path / "sweeps"), 0)
    threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield serving.address
    serving.shutdown()
    serving.server_close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run and of a sweep."""
    folder = tmp_path_factory.mktemp("pages")
    texts = {"run": run.run_page(RunDirectory(folders.run(folder / "digits")), samples=0)}
    texts["sweep"] = sweep.sweep_page(folders.study.make(folder / "lr", points=10, seeds=2, length=60))
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in texts}


@pytest.fixture
def opened(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Any]]:
    """Opens a page, and holds that it asked nothing of a network and complained of nothing."""
    asked: list[str] = []
    said: list[str] = []
    contexts = []

    def open_it(name: str, **options: Any) -> Any:
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.add_init_script(LISTS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.goto(pages[name].as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {
        file.as_uri() for file in pages.values()
    }
    assert said == []


def traces(page: Any, identity: str) -> int:
    """How many curves of a plot are drawn."""
    page.locator(f"#{identity}").scroll_into_view_if_needed()
    page.wait_for_selector(f"#{identity} .main-svg")
    return int(page.locator(f"#{identity} .scatterlayer .trace").count())


def column(page: Any, table: str, number: int) -> list[str]:
    return [text.strip() for text in page.locator(f"{table} tbody tr td:nth-child({number})").all_inner_texts()]


def test_plots_are_drawn_when_they_come_into_view(opened: Callable[..., Any]) -> None:
    page = opened("run", viewport={"width": 1280, "height": 700})
    assert page.locator("#rate-0 .main-svg").count() == 0, "what is far below waits"
    assert traces(page, "curve-0") == 2 and traces(page, "rate-0") == 1
    page.locator("#confusion-0").scroll_into_view_if_needed()
    page.wait_for_selector("#confusion-0 .heatmaplayer image")


def test_texts_that_look_like_code_stay_texts(opened: Callable[..., Any]) -> None:
    page = opened("run")
    assert page.title() == "digits · complete"
    page.locator("#texts details").last.locator("summary").click()
    assert folders.EVIL in page.locator("#texts blockquote").last.inner_text()


def test_axis_can_be_logarithmic(opened: Callable[..., Any]) -> None:
    page = opened("run")
    button = page.locator("button[data-log=curve-0]")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate("document.getElementById('curve-0')._fullLayout.yaxis.type") == "log"


def test_tables_are_sorted_by_mouse_and_by_keyboard(opened: Callable[..., Any]) -> None:
    page = opened("sweep")
    head = page.locator("#leaderboard th", has_text="optimizer.lr")
    head.locator("button").click()
    rising = [float(text) for text in column(page, "#leaderboard", 2)]
    assert head.get_attribute("aria-sort") == "ascending" and rising == sorted(rising)
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(text) for text in column(page, "#leaderboard", 2)] == rising[::-1]


def test_keys_of_the_configuration_can_be_searched(opened: Callable[..., Any]) -> None:
    page = opened("run")
    page.locator("#configuration summary").click()
    page.locator("input[data-filter=settings]").fill("OPTIM lr")
    assert page.locator("#settings tbody tr:visible th").all_inner_texts() == ["optimizer.lr"]


def test_dark_mode_colours_page_and_plots(opened: Callable[..., Any]) -> None:
    page = opened("run", color_scheme="dark")
    colour = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('curve-0')._fullLayout.font.color"
    traces(page, "curve-0")
    assert page.evaluate(colour) == "rgb(16, 19, 24)" and page.evaluate(ink) == "#e6e9ee"
    page.emulate_media(color_scheme="light")
    assert page.evaluate(colour) == "rgb(246, 247, 249)"
    for _ in range(20):  # pages are told with the next frame, which a browser without a screen may put off
        if page.evaluate(ink) == "#1a1f29":
            break
        with contextlib.suppress(playwright.TimeoutError):
            page.screenshot(timeout=5_000)  # draws a frame
        page.wait_for_timeout(100)
    else:  # this browser tells pages nothing of a change of its colours: they are told here
        page.evaluate("window.lists.forEach((list) => list.dispatchEvent(new Event('change')))")
    assert page.evaluate(ink) == "#1a1f29"


@pytest.mark.parametrize("name", ["run", "sweep"])
def test_phone_scrolls_in_one_direction(opened: Callable[..., Any], name: str) -> None:
    page = opened(name, viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True)
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_everything_is_on_paper_in_light_colours(opened: Callable[..., Any], pages: dict[str, Path]) -> None:
    page = opened("run", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    drawn = page.locator(".plot .main-svg:first-child").count()
    assert drawn == page.locator(".plot").count()
    assert page.evaluate("document.getElementById('curve-0')._fullLayout.font.color") == "#1a1f29"
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("button.small").first.is_visible()


@pytest.mark.slow
def test_hundred_long_trials_are_one_small_page_with_every_curve(
    opened: Callable[..., Any], pages: dict[str, Path], tmp_path: Path
) -> None:
    text = sweep.sweep_page(folders.study.make(tmp_path / "lr", points=50, seeds=2, length=10_000))
    assert len(text.encode()) < 15e6
    pages["long"] = tmp_path / "long.html"
    pages["long"].write_text(text, encoding="utf-8")
    page = opened("long", viewport={"width": 1280, "height": 900})
    assert traces(page, "curves-0") == 100 and traces(page, "parallel-0") == 99


def test_brush_fades_the_lines_that_do_not_go_through(opened: Callable[..., Any]) -> None:
    page = opened("sweep", viewport={"width": 1280, "height": 900})
    traces(page, "parallel-0")
    box = page.locator("#parallel-0 .nsewdrag").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + box["height"] * 0.15)
    page.mouse.down()
    page.mouse.move(box["x"] + 60, box["y"] + box["height"] * 0.5, steps=5)
    page.mouse.up()
    page.wait_for_timeout(300)
    shown = page.evaluate("document.getElementById('parallel-0').data.map((line) => line.opacity)")
    assert 0 < shown.count(1) < len(shown) == shown.count(1) + shown.count(0.07)


def test_curves_of_a_running_run_grow(browser: Any, tmp_path: Path, served: str) -> None:
    folder = folders.run(tmp_path / "runs" / "live", status="running")
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    points = "document.getElementById('curve-0').data[0].x.length"
    line = "document.querySelector('#curve-0 .trace path.js-line').getAttribute('d')"
    with (folder / ".lock").open("w") as lock, (folder / "metrics.jsonl").open("a") as stream:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page.goto(served.replace("/?", "/runs/live?"))
        page.wait_for_selector("#curve-0 .main-svg")
        before, drawn = page.evaluate(points), page.evaluate(line)
        stream.write('{"step": 61, "train/loss": 0.5}\n')
        stream.flush()
        for _ in range(100):
            page.wait_for_timeout(100)
            if (after := page.evaluate(points)) > before:
                break
        page.wait_for_timeout(200)
        assert page.evaluate(line) != drawn, "the new point is drawn"
    page.close()
    assert after == before + 1 and said == []


def test_chosen_runs_are_laid_over_each_other_and_grow_in_place(browser: Any, tmp_path: Path, served: str) -> None:
    folders.run(tmp_path / "runs" / "done")
    folder = folders.run(tmp_path / "runs" / "live", status="running", steps=100)
    page = browser.new_page(viewport={"width": 360, "height": 740})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    shown = "document.querySelector('#chosen-runs .progress').textContent"
    last = "document.getElementById('overlay-1').data.find((trace) => trace.name === 'live').x.at(-1)"
    with (folder / ".lock").open("w") as lock, (folder / "metrics.jsonl").open("a") as stream:
        fcntl.flock(lock, fcntl.LOCK_EX)
        page.goto(served)
        for name in ("done", "live"):
            page.locator(f"input[value={name}]").check()
        page.locator("button.choose").click()
        page.wait_for_selector("#overlay-0 .main-svg")
        assert "token" not in page.url and sorted(page.url.partition("?")[2].split("&")) == ["run=done", "run=live"]
        page.evaluate("window.mark = 1")
        assert "step 60 of 100" in page.evaluate(shown)
        stream.write('{"step": 70, "train/loss": 0.5}\n')
        stream.flush()
        for _ in range(100):
            page.wait_for_timeout(100)
            if page.evaluate(last) == 70:
                break
        assert page.evaluate(last) == 70
        assert "step 70 of 100" in page.evaluate(shown) and page.evaluate("window.mark") == 1, "it is the same page"
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.close()
    assert said == []
