"""`bigctl plan --html`: a page that says what the command says, and asks nothing of a network."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

from bigctl.cli.main import main
from bigctl.formatting import size
from bigctl.reports import plan as pages

MLP = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "optimizer=adamw"]


def figures(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_page_of_a_plan_shows_what_the_command_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.html"
    asked = ["plan", *MLP, "mesh=data", "--target", "cpu:4"]
    assert main([*asked, "--html", str(file), "--json"]) == 0
    plan, page = json.loads(capsys.readouterr().out), file.read_text()
    drawn = figures(page)
    unit = {"KiB": 2**10, "MiB": 2**20}[drawn["memory"]["layout"]["xaxis"]["title"]["text"]]
    held = sum(trace["x"][0] for trace in drawn["memory"]["data"]) * unit
    assert held == pytest.approx(plan["memory"]["peak_bytes"], rel=1e-4)
    assert f"{size(plan['memory']['peak_bytes'])} at most" in page
    terms = dict(zip(drawn["time"]["data"][0]["x"], drawn["time"]["data"][0]["y"], strict=True))
    assert terms == pytest.approx({name: 1e3 * s for name, s in plan["step_seconds"]["terms"].items()}, rel=1e-4)
    sent = sum(sum(trace["y"]) for trace in drawn["sent"]["data"])
    assert sent > 0 and all(each["path"] in page for each in plan["memory"]["largest"][:8])
    assert "bigctl plan recipe=mlp_cls" in page and "--target cpu:4" in page
    assert "default-src 'none'" in html.unescape(page)


def test_page_of_a_search_marks_what_does_not_fit() -> None:
    def point(keys: str, peak: int, rate: float, fits: bool) -> dict:
        time = {"low": 1e-3, "high": 2e-3, "binds": "memory"}
        shared = {"refused": None, "fits": fits, "step_seconds": time, "peak_bytes": peak, "examples_per_s": rate}
        return {"overrides": keys, **shared}

    refused = {"overrides": "mesh.tensor=4", "fits": False, "refused": "heads cannot be divided"}
    tried = [point("mesh.data=8", 2**30, 1000.0, True), point("mesh.fsdp=8", 2**34, 900.0, False), refused]
    page = pages.search_page("h100:8", tried, "bigctl plan")
    traces = figures(page)["ranking"]["data"]
    assert [(trace["name"], trace["y"]) for trace in traces] == [("fits", [1000]), ("does not fit", [900])]
    assert "heads cannot be divided" in page and "<td>does not fit</td>" in page


def test_page_in_a_folder_that_there_is_not_is_refused_before_anything_is_compiled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *MLP, "--html", str(tmp_path / "none" / "plan.html")]) == 2
    assert "--html" in capsys.readouterr().err
