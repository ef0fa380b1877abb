"""The page at / is driven in a real Chromium: it answers, asks nothing elsewhere, and complains of nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.serving import writer
from tests.serving.running import serving

playwright = pytest.importorskip("playwright.sync_api")
pytest.importorskip("starlette")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [pytest.mark.fewer, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]


def test_a_text_is_written_on_the_page(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    run = writer.trained(tmp_path_factory)
    with serving(tmp_path, str(run)) as running, playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless=new", "--no-sandbox"])
        page, said, asked = browser.new_page(viewport={"width": 390, "height": 800}), [], []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(running.address)
        page.fill("textarea", "to be")
        page.fill("input[name=seed]", "7")
        page.fill("input[name=max_tokens]", "20")
        page.click("#go")
        page.wait_for_selector("#go:enabled")
        body = {"prompt": "to be", "max_tokens": 20, "seed": 7, "temperature": 0.8}
        expected = running("/v1/completions", body).json["choices"][0]["text"]
        page.wait_for_selector(".text")
        page.wait_for_selector("#end", state="hidden")
        assert page.text_content(".text") == "to be" + expected
        assert said == [] and all(url.startswith((running.address, "data:")) for url in asked)
        browser.close()
