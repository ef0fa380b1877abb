"""`compare`, `report` and `info` take what `bigctl export` wrote, and leave it as it was."""

from __future__ import annotations

import math
import shutil

import pytest

from bigctl.runs.directory import SETTINGS, SOURCE
from tests.conftest import Cli
from tests.exported import digests

pytestmark = pytest.mark.fewer


# ------------------------------------------------------------------------------------------------------------- compare


def test_an_export_stands_beside_its_run(exports: Cli) -> None:
    found = exports.json("compare", "small", "small/jax", "elsewhere")
    run, first, _ = found["runs"]
    assert first["status"] == "export" and first["model"]["format"] == "jax" and run["model"]["format"] == "run"
    assert not found["config"] and "data" not in found["surroundings"]
    out = exports("compare", "small", "small/jax").stdout
    assert "configuration: no difference" in out and "--significance" in out
    error = exports("compare", "small", "small/jax", "--assert-equal", code=2).stderr
    assert "has no metrics to compare" in error
    assert "is named twice" in exports("compare", "elsewhere", "elsewhere/", code=2).stderr


def test_paired_tests_of_an_export_and_its_run_find_no_difference(exports: Cli) -> None:
    found = exports.json("compare", "small", "small/jax", "--significance", "--rounds", "100")
    assert found["mcnemar"]["p"] == 1.0 and set(found["exports"]) == {"runs/small/jax"}
    assert all(math.isclose(each["first"], each["second"], rel_tol=1e-4) for each in found["metrics"])
    assert (
        "small/jax beside" in exports("compare", "elsewhere", "small/jax", "--significance", "--rounds", "100").stdout
    )


# -------------------------------------------------------------------------------------------------------- report, info


def test_a_page_of_an_export_lies_beside_it(exports: Cli) -> None:
    before = digests(exports.folder / "elsewhere")
    assert exports("report", "elsewhere").stdout == "elsewhere-report.html\n"
    page = (exports.folder / "elsewhere-report.html").read_text()
    for said in ("made from runs/small, step 30", "Scores of the test split", "weights.npz", "Compared with the run"):
        assert said in page
    assert digests(exports.folder / "elsewhere") == before
    assert "an export has no curves" in exports("report", "elsewhere", "--png", code=2).stderr
    shutil.rmtree(exports.folder / "runs")
    (exports.folder / "elsewhere" / "labels.json").unlink()
    exports("report", "elsewhere", "--out", "page.html")
    page = (exports.folder / "page.html").read_text()
    assert "labels.json is missing" in page and "its scores are not known" in page


def test_what_is_known_of_an_export_is_told(exports: Cli) -> None:
    known = exports.json("info", "elsewhere")
    assert (known["format"], known["recipe"], known["classes"]) == ("jax", "mlp_cls", ["large", "small"])
    out = exports("info", "small/jax").stdout
    assert "an export, jax, weights float32" in out and "taken by     bigctl predict, bigctl serve, bigctl eval" in out
    (exports.folder / "elsewhere" / SETTINGS).write_text("{")
    (exports.folder / "elsewhere" / SOURCE).unlink()
    out = exports("info", "elsewhere").stdout
    assert out.count("note: ") == 2 and "is missing" in out


def test_a_page_beside_an_export_goes_with_its_run(exports: Cli) -> None:
    exports("report", "small/jax")
    assert (exports.folder / "runs" / "small" / "jax-report.html").is_file()
    exports("runs", "rm", "small", "--yes")
    assert not (exports.folder / "runs" / "small").exists()
