"""Pages without a browser: everything is there, nothing breaks out, and no state of a folder stops them."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigctl.cli import main
from bigctl.errors import RunError
from bigctl.reports import history, png, run, studies, sweep, thinning
from bigctl.runs.directory import RunDirectory
from tests.reports import folders


class Page(HTMLParser):
    """Ids, links and sources of a page, its figures, and the text that is seen."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.seen = ""
        self.figures: dict[str, Any] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        if tag == "wbr":  # it is the same word
            self.seen = self.seen.removesuffix(" ")
        self._inside = (found.get("id") or tag) if tag in ("script", "style") else ""
        self.ids += [found["id"] or ""] if "id" in found else []
        self.addresses += [found[name] or "" for name in ("href", "src") if name in found]

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "figures":
            self.figures = json.loads(data)
        elif not self._inside:
            self.seen += f"{data} "


def of_run(folder: Path) -> Page:
    return Page(run.run_page(RunDirectory(folder), samples=0))


def test_page_has_every_metric_every_key_and_one_place_for_each_plot(tmp_path: Path) -> None:
    page = of_run(folders.run(tmp_path / "digits"))
    drawn = {trace["meta"] for figure in page.figures.values() for trace in figure["data"] if "meta" in trace}
    assert drawn == {"train/loss", "val/loss", "val/accuracy", "perf/examples_per_s"}
    assert "val/f1 0.5 the same at 12 steps" in page.seen and "lr 0.1 the same at 60 steps" in page.seen
    assert len(page.ids) == len(set(page.ids)) and set(page.figures) <= set(page.ids)
    loss = next(f for f in page.figures.values() if f["data"][0].get("meta") == "train/loss")
    assert [trace["meta"] for trace in loss["data"]] == ["train/loss", "val/loss"], "splits share a plot"
    assert loss["data"][0]["y"][29] is None, "a gap where the loss was not finite"
    for part in ("0.6000", "0.5800", "optimizer.lr", "1,234", "bigctl predict", "upon a time", "jax 0.10.2", "class 2"):
        assert part in page.seen, part


def test_texts_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    page = of_run(folders.run(tmp_path / "digits"))
    assert page.tags.count("script") == 3 and "img" not in page.tags
    assert folders.EVIL in page.seen and folders.EVIL not in json.dumps(page.figures)


def test_page_names_no_address_outside_of_itself(tmp_path: Path) -> None:
    text = run.run_page(RunDirectory(folders.run(tmp_path / "digits")), samples=0)
    assert all(address.startswith(("#", "data:")) for address in Page(text).addresses)
    policy = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)[0]
    assert "default-src &#39;none&#39;" in policy and "connect-src &#39;none&#39;" in policy
    assert "unsafe-eval" not in policy and policy.count("sha256-") == 2


LOST = ["summary.json", "metrics.jsonl", "config.yaml", "log.txt", "samples.jsonl", "run.json"]


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize(
    "content", [None, "", "{", "[]", '{"starts": 3, "metrics": 7, "timings": [], "step": "x"}\n\x00']
)
def test_damaged_run_has_a_page_with_what_there_is(tmp_path: Path, lost: str, content: str | None) -> None:
    folder = folders.run(tmp_path / "digits")
    (folder / lost).unlink()
    if content is not None:
        (folder / lost).write_text(content)
    page = of_run(folder)
    assert "digits" in page.seen and (lost == "metrics.jsonl" or len(page.figures) >= 3)


@pytest.mark.parametrize("status", ["running", "failed", "diverged", "preempted", "complete"])
def test_run_that_has_just_begun_has_a_page(tmp_path: Path, status: str) -> None:
    folder = tmp_path / "young"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"schema": 1, "created": 1.0, "status": status, "recipe": "cnn_cls"}))
    assert "No metrics were written yet" in of_run(folder).seen


def test_failed_run_shows_why_and_the_end_of_its_log(tmp_path: Path) -> None:
    folder = folders.run(tmp_path / "digits", status="failed", message="the disk is full")
    seen = of_run(folder).seen
    assert "the disk is full" in seen and "last line" in seen


def test_torn_and_damaged_lines_are_left_out(tmp_path: Path) -> None:
    file = folders.run(tmp_path / "digits") / "metrics.jsonl"
    whole = history.read_history(file)
    file.write_bytes(b'not json\n{"step": 1e999}\n[1]\n' + file.read_bytes() + b'{"step": 61, "train/loss": 0.')
    found = history.read_history(file)
    assert found.damaged == 3 and (found.curves["train/loss"].steps == whole.curves["train/loss"].steps).all()
    one = history.read_one(file, "train/loss")
    assert (one.steps == found.curves["train/loss"].steps).all()
    np.testing.assert_array_equal(one.values, found.curves["train/loss"].values)
    later = history.read_history(file, start=found.end)
    assert not later.curves and later.end == found.end, "half a line waits for its end"


def test_thinning_keeps_ends_extremes_and_gaps() -> None:
    values = np.sin(np.arange(10_000) / 700)
    values[[1234, 8765]] = 9, -9
    values[5000:5100] = np.nan
    kept = thinning.thin(values, 500)
    assert len(kept) <= 500 and (np.diff(kept) > 0).all()
    assert {0, 9999, 1234, 8765} <= set(kept.tolist()) and np.isnan(values[kept]).any()
    assert thinning.thin(values[:100], 500).tolist() == list(range(100))
    assert len(thinning.thin(np.full(1000, np.nan), 50)) <= 50


@pytest.mark.parametrize("count", [2, 20, 100])
def test_confusion_of_few_and_many_classes(tmp_path: Path, count: int) -> None:
    page = of_run(folders.run(tmp_path / "digits", classes=count))
    matrix = page.figures["confusion-0"]
    assert np.shape(matrix["data"][0]["z"]) == (count, count)
    assert len(matrix["layout"]["xaxis"]["tickvals"]) <= 30 and ("texttemplate" in matrix["data"][0]) == (count <= 20)


# --------------------------------------------------------------------------------------------------------------- sweeps


def test_sweep_page_names_folds_where_there_are_some(tmp_path: Path) -> None:
    folder = folders.study.make(tmp_path / "lr", points=3, seeds=2, length=5, failed=0)
    board = json.loads((folder / "leaderboard.json").read_text())
    assert "over seeds" in Page(sweep.sweep_page(folder)).seen
    board |= {"folds": [0, 1], "trials": [t | {"fold": t["seed"], "seed": None} for t in board["trials"]]}
    (folder / "leaderboard.json").write_text(json.dumps(board))
    page = Page(sweep.sweep_page(folder))
    assert "mean ± standard deviation over 2 folds" in page.seen and "over 2 runs" in page.seen
    assert ">seed</th>" not in sweep.sweep_page(folder)  # no trial has one
    board |= {"axes": [], "trials": [t | {"point": {}} for t in board["trials"]]}
    (folder / "leaderboard.json").write_text(json.dumps(board))
    assert "val/accuracy over 2 folds ·" in " ".join(Page(sweep.sweep_page(folder)).seen.split())
    assert {each["name"].split()[-1] for each in page.figures["curves-0"]["data"]} == {"fold=0", "fold=1"}


def test_sweep_of_single_evaluations_draws_no_chart_of_them(tmp_path: Path) -> None:
    folder = folders.study.make(tmp_path / "short", points=3, seeds=1, length=30, failed=0)
    for path in folder.glob("trials/*/metrics.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [line for line in lines if "val/accuracy" not in line] + [{"step": 30, "val/accuracy": 0.5}]
        path.write_text("".join(json.dumps(line) + "\n" for line in kept))
    page = Page(sweep.sweep_page(folder))
    captions = " ".join(page.seen.split())
    assert "val/accuracy of 3 trials" not in captions and "train/loss of 3 trials" in captions


def test_sweep_page_has_the_whole_answer(tmp_path: Path) -> None:
    folder = folders.study.make(tmp_path / "lr", points=6, seeds=2, length=30)
    text = sweep.sweep_page(folder)
    page = Page(text)
    assert {"parallel-0", "curves-0", "curves-1", "slice-0", "slice-1", "slice-2", "importance-0", "pareto-0"} == set(
        page.figures
    )
    assert len(page.figures["curves-0"]["data"]) == 12 and len(page.figures["parallel-0"]["data"]) == 11
    assert "the loss is not finite at step 40" in page.seen and "bigctl train recipe=cnn_cls" in page.seen
    assert "trials/000000000003/" in page.addresses and "0.9530" in page.seen
    assert page.figures["slice-0"]["layout"]["xaxis"]["type"] == "log"


@pytest.mark.parametrize(
    "key", ["points", "trials", "axes", "effects", "pareto", "failures", "winner", "status", "metric"]
)
def test_sweep_page_does_without_any_part_of_the_leaderboard(tmp_path: Path, key: str) -> None:
    folder = folders.study.make(tmp_path / "lr", points=2, seeds=2, length=3)
    board = json.loads((folder / "leaderboard.json").read_text())
    del board[key]
    (folder / "leaderboard.json").write_text(json.dumps(board))
    shutil.rmtree(folder / "trials" / "000000000000")
    assert "Trials" in Page(sweep.sweep_page(folder)).seen


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"trials": [{"point": 3}]}', '{"winner": 7}', '{"effects": [{"importance": 1}]}', "{}"]
)
def test_damaged_leaderboard_is_one_clear_line_or_an_empty_page(tmp_path: Path, content: str) -> None:
    (tmp_path / "leaderboard.json").write_text(content)
    if content == "{}":
        assert "No point has a finite" in Page(sweep.sweep_page(tmp_path)).seen
        return
    with pytest.raises(RunError, match="leaderboard.json"):
        sweep.sweep_page(tmp_path)


def test_trials_without_a_value_are_in_no_plot_of_parameters() -> None:
    dots = [
        studies.Dot(f"t{n}", {"lr": lr}, value, {})
        for n, (lr, value) in enumerate([("0.1", 1.0), ("1", None), ("10", 3.0)])
    ]
    scale = studies.scale({"key": "lr", "log": True}, dots)
    figure = studies.parallel(dots, [scale], "val/loss", "min")
    assert figure is not None and [trace["name"] for trace in figure.data] == ["t2", "t0"], "the best is drawn last"
    (one,) = studies.slices(dots, [scale], "val/loss", "min")
    assert one.data[0]["x"] == [0.1, 10] and "lr=0.1" in one.caption


# ---------------------------------------------------------------------------------------------------------- the command


def test_command_writes_the_page_and_says_where(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folders.run(tmp_path / "runs" / "digits")
    folders.study.make(tmp_path / "sweeps" / "lr", points=2, seeds=1, length=3)
    assert main.main(["report", "digits", "--samples", "0"]) == 0
    assert capsys.readouterr().out == "runs/digits/report.html\n"
    assert "digits" in (tmp_path / "runs/digits/report.html").read_text()
    assert main.main(["report", "lr", "--out", "page.html", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["report"] == "page.html"
    assert "sweeps/lr/trials/000000000000/" in Page((tmp_path / "page.html").read_text()).addresses
    assert main.main(["report", "digitz"]) == 2 and "did you mean digits" in capsys.readouterr().err
    assert main.main(["report", "digits", "--samples", "0", "--out", "nowhere/page.html"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_matplotlib_the_page_is_written_and_the_picture_asked_for(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    real = png.importlib.util.find_spec
    monkeypatch.setattr(
        png.importlib.util, "find_spec", lambda name, *more: None if name == "matplotlib" else real(name, *more)
    )
    folders.run(tmp_path / "runs" / "digits")
    assert main.main(["report", "digits", "--samples", "0", "--png"]) == 2
    out, err = capsys.readouterr()
    assert out == "runs/digits/report.html\n" and (tmp_path / out.strip()).is_file()
    assert "matplotlib is not installed; the page is written" in err and "pip install 'bigctl[report]'" in err
    assert main.main(["report", "digits", "--samples", "0", "--png", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    assert found["report"] == "runs/digits/report.html" and found["png"] is None and "matplotlib" in found["missing"]


@pytest.mark.parametrize("scored", [False, True])
def test_table_of_metrics_has_no_column_for_a_test_split_that_was_not_scored(tmp_path: Path, scored: bool) -> None:
    folder = folders.run(tmp_path / "digits")
    metrics = {"val/accuracy": 0.9} | ({"test/accuracy": 0.8} if scored else {})
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"metrics": metrics}))
    text = run.run_page(RunDirectory(folder), samples=0)
    head = text[text.index(">metric</th>") :].partition("</tr>")[0]
    assert (">test</th>" in head) == scored and ">validation</th>" in head


def test_what_the_start_decided_is_no_difference(tmp_path: Path) -> None:
    from bigctl.config import compose

    overrides = ["recipe=mlp_cls", "optimizer.lr=0.1"]
    config = compose.compose(overrides).config
    config = dataclasses.replace(config, schedule=dataclasses.replace(config.schedule, horizon=1300))
    made = RunDirectory(tmp_path / "run")
    made.path.mkdir()
    made.write_config(compose.to_yaml(config), overrides)
    changed = {s.key: s.changed for s in run._settings(made, {"recipe": "mlp_cls", "overrides": overrides})}
    assert changed["optimizer.lr"] and not changed["schedule.horizon"] and changed["seed"] is False


def test_picture_of_the_curves_for_markdown(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    pytest.importorskip("matplotlib")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    folders.run(tmp_path / "runs" / "digits")
    assert main.main(["report", "digits", "--samples", "0", "--png"]) == 0
    assert capsys.readouterr().out.splitlines()[1] == "![digits](runs/digits/curves.png)"
    assert Image.open("runs/digits/curves.png").size[0] > 800
