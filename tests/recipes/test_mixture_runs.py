"""Runs on `data=mixture`: each corpus is scored and may select, and a resumed run draws what it would have drawn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bigctl
from bigctl.config import compose, schema
from bigctl.data.files import changed_files
from bigctl.data.sources import tokens as token_source
from bigctl.engine import dry_run
from bigctl.errors import BigctlError
from bigctl.runs.directory import RunDirectory
from tests.corpora import TINY, given, write

pytestmark = pytest.mark.fewer


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "mixtures"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = write(tmp_path_factory.mktemp("trained"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGCTL_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "mixtures"))
        bigctl.train([*TINY, *given(folder), "eval.metric=val/loss/books"], folder / "run", quiet=True)
    return folder


def test_each_corpus_is_scored_and_may_select(trained):
    run = RunDirectory(trained / "run")
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    scored = [line for line in lines if "val/loss" in line]
    assert all({"val/loss/web", "val/loss/books", "val/bits_per_byte/web"} <= set(line) for line in scored)
    summary = run.summary()
    sizes = {name: part["tokens"]["validation"] - 1 for name, part in run.record()["data"]["info"]["corpora"].items()}
    mean = sum(summary["metrics"][f"val/loss/{name}"] * size for name, size in sizes.items()) / sum(sizes.values())
    assert summary["metrics"]["val/loss"] == pytest.approx(mean, rel=1e-6)
    assert summary["selected_by"] == "val/loss/books" and "test/loss/web" in summary["metrics"]
    assert run.record()["selection"] == {"metric": "val/loss/books", "mode": "min"}
    drawn = {each["name"]: each["share"] for each in run.record()["data"]["drawn"]}
    assert drawn == {"web": 0.7, "books": 0.3}
    assert schema.known_direction("val/loss/web") == schema.known_direction("val/bits_per_byte/web") == "min"


@pytest.mark.slow
def test_a_resumed_run_draws_what_it_would_have_drawn(trained):
    half = [*TINY, *given(trained), "eval.metric=val/loss/books"]
    bigctl.train([*half, "train.steps=4", "schedule.horizon=8"], trained / "half", quiet=True)
    bigctl.train([*half, "schedule.horizon=8"], trained / "half", quiet=True)
    assert bigctl.load(trained / "run").evaluate("test")["test/loss/web"] > 0
    whole, again = (RunDirectory(trained / name).summary()["metrics"] for name in ("run", "half"))
    assert whole == again


@pytest.mark.parametrize("whole", [2**28, 0])
def test_a_changed_file_is_named_when_a_run_is_resumed(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(token_source, "_WHOLE", whole)
    folder = write(tmp_path / "own")
    corpora = {"web": schema.Corpus(str(folder / "web.bin")), "books": schema.Corpus(str(folder / "books"))}
    config = schema.Mixture(corpora=corpora)
    before = json.loads(json.dumps(changed_files.known(config)))
    assert changed_files.told(before, config) == ""
    file = folder / "books" / "1.bin"
    file.write_bytes(file.read_bytes()[:-2])
    assert f": {file} (data.corpora.books) had " in changed_files.told(before, config)
    file.unlink()
    assert f"{file} (data.corpora.books) is not there any more" in changed_files.told(before, config)


@pytest.mark.slow
def test_a_dry_run_tells_what_is_drawn(trained):
    report = dry_run.report(compose.compose([*TINY, *given(trained)]).config)
    assert "web: 0.7 of the windows" in dry_run.text(report) and report["drawn"][0]["name"] == "web"
    with pytest.raises(BigctlError, match="there is no metric 'val/loss/wbe' to select by"):
        dry_run.report(compose.compose([*TINY, *given(trained), "eval.metric=val/loss/wbe", "eval.mode=min"]).config)
