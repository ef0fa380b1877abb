"""How long a sweep's page takes to build and to open, and how large it is: 100 trials of 10,000 points.

    python scripts/bench_report.py                 builds it, and opens it in Chromium where there is one
    python scripts/bench_report.py --trials 20 --points 1000

Opening is timed by the page itself, from the start of the navigation until all that is in view is drawn, in a fresh
browser each time (package `playwright`, extra `browser`).
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import _study

from bigctl.reports import sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--points", type=int, default=10_000, help="of each metric of each trial")
    parser.add_argument("--repeats", type=int, default=5, help="how often the page is opened")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = _study.make(
            Path(temporary) / "sweep", points=options.trials // 2, seeds=2, length=options.points
        )  # fmt: skip
        began = time.perf_counter()
        text = sweep.write(folder)
        print(f"built in {time.perf_counter() - began:.1f} s, {len(text.encode()) / 1e6:.1f} MB")
        page = folder / "report.html"
        page.write_text(text, encoding="utf-8")
        times = opened(page, options.repeats)
        if times:
            print(f"interactive after {statistics.median(times):.2f} s (median; {min(times):.2f} to {max(times):.2f})")


def opened(page: Path, repeats: int) -> list[float]:
    """Seconds until the page is drawn, each time in a new browser; nothing where there is no browser."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium = None
    if chromium is None:
        print("not opened: this takes Chromium and the package playwright")
        return []
    found = []
    with sync_playwright() as driver:
        for _ in range(repeats):
            browser = driver.chromium.launch(executable_path=chromium, args=["--headless=new", "--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1280, "height": 900})
            tab.goto(page.as_uri())
            tab.wait_for_selector("html[data-ready]")
            found.append(int(tab.evaluate("document.documentElement.dataset.ready")) / 1000)
            tab.evaluate("scrollTo(0, document.getElementById('curves').offsetTop)")
            tab.wait_for_selector("#curves-0 .main-svg")
            browser.close()
    return found


if __name__ == "__main__":
    main()
