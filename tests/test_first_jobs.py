"""Fifteen things that a newcomer does first, from an installed wheel: each three commands or six lines at most.

A job that builds on another one's run has that one done first, so that each test can be run by itself.
"""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forked, newcomer

pytestmark = pytest.mark.fewer
ROOT = Path(__file__).resolve().parents[1]
CUSTOMERS = "recipe=mlp_cls data=csv data.path=customers.csv data.label=churned"

JOBS: dict[str, list[str] | str] = {
    "own Chinese csv": [
        "bigctl train recipe=ngram_cls data=csv data.path=titles.csv data.text=title data.label=topic --name titles",
        "bigctl predict titles new_titles.csv --out topics.csv",
    ],
    "a folder of pictures": [
        "bigctl train recipe=cnn_cls data=image_folder data.path=photos 'data.image_size=[16,16]' train.epochs=4"
        " --name photos",
        "bigctl predict photos album/ --out album.csv",
    ],
    "a table with categories": [f"bigctl train {CUSTOMERS} train.epochs=40 --name customers"],
    "a novel": [
        "bigctl train recipe=gpt_lm data=text data.path=novel.txt model.layers=1 model.width=64 train.steps=80"
        " eval.every=80 --name novel",
        "bigctl generate novel --prompt 'The old captain' --max-new-tokens 80",
    ],
    "a DataFrame": """
import bigctl, pandas
frame = pandas.read_csv("customers.csv")
run = bigctl.train(["recipe=mlp_cls", "data.label=churned", "train.epochs=40"], "runs/frame", data=frame)
print(run["metrics"]["test/accuracy"])
pandas.DataFrame(run.describe(pandas.read_csv("new_customers.csv"))).to_csv("described.csv")
""",
    "arrays": """
import bigctl, numpy
patches = numpy.load("patches.npz")
images, labels = patches["images"], patches["labels"]
run = bigctl.train(["recipe=cnn_cls", "train.epochs=4"], "runs/arrays", data=(images[:120], labels[:120]))
found = numpy.array(run.classes)[run.predict(images[120:]).argmax(-1)]
print((found == labels[120:]).mean())
""",
    "resume": [f"bigctl train {CUSTOMERS} train.epochs=150 --name long", "bigctl resume long"],
    "a sweep": [f"bigctl sweep {CUSTOMERS} train.epochs=10 optimizer.lr=1e-6,1e-2 --packed yes --name rates"],
    "k folds": [f"bigctl sweep {CUSTOMERS} train.epochs=10 data.folds=3 'data.fold=range(3)' --name folds"],
    "compare": ["bigctl compare customers long", "bigctl compare customers long --json"],
    "a report": ["bigctl report customers", "bigctl report sweeps/rates"],
    "predict to csv": ["bigctl predict customers new_customers.csv --out preds.csv"],
    "a threshold": [
        "bigctl eval customers --threshold 'recall>=0.95'",
        "bigctl predict customers new_customers.csv --out kept.csv",
    ],
    "embeddings": ["bigctl predict photos album/ --embeddings --out vectors.csv"],
    "a learning rate": [f"bigctl train {CUSTOMERS} train.epochs=10 --find-lr --name found", "{next}"],
}
BUILDS_ON = {
    "compare": ["a table with categories", "resume"],
    "a report": ["a table with categories", "a sweep"],
    "predict to csv": ["a table with categories"],
    "a threshold": ["predict to csv"],
    "embeddings": ["a folder of pictures"],
}


def test_fifteen_jobs_are_short() -> None:
    assert len(JOBS) == 15
    for name, job in JOBS.items():
        assert len(job) <= 3 if isinstance(job, list) else len(job.strip().splitlines()) <= 6, name


class Newcomer:
    """A folder with data, and what an installed wheel does there."""

    def __init__(self, base: Path):
        self.folder, self.site = base / "mine", _installed(base)
        self.folder.mkdir()
        newcomer.fill(self.folder)
        fewer = {"PYTHONPATH": str(self.site), forked.FEWER: "1"}  # programs that are compiled in half the time
        self.environment = {**os.environ, **fewer, "COLUMNS": "100"}
        self._done: dict[str, list[str] | None] = {}

    def __enter__(self) -> Newcomer:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(self.site))
            self._server = forked.Server()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()

    def do(self, name: str) -> list[str]:
        """What each command of a job prints on stdout, or the Python of one."""
        for other in BUILDS_ON.get(name, []):
            if other not in self._done:
                self.do(other)
            if self._done[other] is None:
                pytest.fail(f"{name!r} builds on {other!r}, which has failed", pytrace=False)
        if self._done.get(name) is None:
            self._done[name] = None
            job, said = JOBS[name], []
            for line in job if isinstance(job, list) else [job]:
                if isinstance(job, str):
                    said.append(self.python(line))
                elif name == "resume" and not said:
                    said.append(self.stopped(line, self.folder / "runs" / "long" / "metrics.jsonl"))
                else:
                    said.append(self.command(line, said))
            self._done[name] = said
        return self._done[name] or []

    def command(self, line: str, said: list[str]) -> str:
        if line == "{next}":  # what the command before says is to be typed next
            line = said[-1].split("next:\n")[1].splitlines()[0]
        words = shlex.split(line)
        assert words[0] == "bigctl"
        done = self._server.run([str(self.site / "bin" / "bigctl"), *words[1:]], self.folder, self.environment, 300)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout

    def python(self, text: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=self.folder, env=self.environment, capture_output=True, timeout=300
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    def stopped(self, line: str, when: Path) -> str:
        """Ctrl-C as soon as a file has lines."""
        program = [sys.executable, str(self.site / "bin" / "bigctl"), *shlex.split(line)[1:]]
        with subprocess.Popen(program, cwd=self.folder, env=self.environment, stderr=subprocess.PIPE) as process:
            while process.poll() is None and not (when.exists() and when.stat().st_size):
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=300)
        assert process.returncode == 130, said.decode()
        return ""

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.folder / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))

    def lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").splitlines()]

    def metrics(self, run: str) -> dict[str, float]:
        return self.json(f"runs/{run}/summary.json")["metrics"]


def _installed(base: Path) -> Path:
    """A folder with a wheel of this checkout installed. The checkout is left as it is."""
    source = base / "source"
    for name in ("bigctl", "recipes", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    here = _setuptools() >= 77  # else pip fetches the one that pyproject.toml asks for
    isolation = ["--no-build-isolation"] if here else []
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", *isolation, "-w", str(base), str(source)], capture_output=True, text=True
    )
    if not here and "No matching distribution found for setuptools" in built.stdout + built.stderr:
        pytest.skip("to build a wheel, setuptools>=77 must be here, or a package index")
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = base.glob("*.whl")
    subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", "-t", str(base / "site"), str(wheel)], check=True)
    return base / "site"


def _setuptools() -> int:
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        return int(metadata.version("setuptools").split(".")[0])
    return 0


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    with Newcomer(tmp_path_factory.mktemp("first")) as made:
        where = made.python("import bigctl; print(bigctl.__file__)").strip()
        assert Path(where).is_relative_to(made.site) and not made.site.is_relative_to(ROOT)
        yield made


def share(truth: list[str], found: list[str]) -> float:
    assert len(truth) == len(found)
    return sum(a == b for a, b in zip(truth, found, strict=True)) / len(truth)


def column(rows: list[dict[str, str]], name: str) -> list[str]:
    return [row[name] for row in rows]


LEAVERS = newcomer.customers(200, seed=2)
MAJORITY = max(share(LEAVERS["churned"], [kind] * 200) for kind in ("yes", "no"))


@pytest.mark.slow
def test_own_chinese_csv(mine: Newcomer) -> None:
    mine.do("own Chinese csv")
    given, found = newcomer.titles(40, seed=2), mine.rows("topics.csv")
    assert mine.metrics("titles")["test/accuracy"] > 0.9
    assert column(found, "id") == [str(id) for id in given["id"]]
    assert share(given["topic"], column(found, "label")) > 0.9
    assert {f"probability_{topic}" for topic in newcomer.TOPICS} < set(found[0])


@pytest.mark.slow
def test_a_folder_of_pictures(mine: Newcomer) -> None:
    mine.do("a folder of pictures")
    found = mine.rows("album.csv")
    assert mine.metrics("photos")["test/accuracy"] > 0.9
    assert [Path(row["file"]).name for row in found] == [f"{number:02d}.png" for number in range(30)]
    assert share(newcomer.pictures(30, seed=2)[1], column(found, "label")) > 0.9


@pytest.mark.slow
def test_a_table_with_categories(mine: Newcomer) -> None:
    mine.do("a table with categories")
    assert mine.metrics("customers")["test/accuracy"] > MAJORITY + 0.1
    assert mine.metrics("customers")["test/roc_auc"] > 0.9


@pytest.mark.slow
def test_a_novel(mine: Newcomer) -> None:
    written = mine.do("a novel")[1]
    text = newcomer.novel(500, seed=1)
    shares = np.unique(list(text), return_counts=True)[1] / len(text)
    letters = -(shares * np.log(shares)).sum()  # what is known from how frequent each is
    assert mine.metrics("novel")["test/loss"] < letters / 2
    words = written.removeprefix("The old captain").split()[:-1]  # the last one may be cut
    assert len(words) > 5
    known = {word.strip(".").lower() for word in text.split()}
    assert np.mean([word.strip(".").lower() in known for word in words]) > 0.5


@pytest.mark.slow
def test_a_dataframe(mine: Newcomer) -> None:
    pytest.importorskip("pandas")
    accuracy = float(mine.do("a DataFrame")[0].splitlines()[-1])
    assert accuracy == mine.metrics("frame")["test/accuracy"] > MAJORITY + 0.1
    assert share(LEAVERS["churned"], column(mine.rows("described.csv"), "label")) > MAJORITY + 0.1


@pytest.mark.slow
def test_arrays(mine: Newcomer) -> None:
    assert float(mine.do("arrays")[0].splitlines()[-1]) > 0.9


@pytest.mark.slow
def test_resume(mine: Newcomer) -> None:
    mine.do("resume")
    run, records = mine.json("runs/long/run.json"), mine.lines("runs/long/metrics.jsonl")
    first, second = run["starts"]
    assert run["status"] == "complete" and first["step"] == 0 < second["step"]
    steps = [record["step"] for record in records if "train/loss" in record]
    assert steps == sorted(set(steps)) and steps[0] <= second["step"] < steps[-1] == run["steps"]


@pytest.mark.slow
def test_a_sweep(mine: Newcomer) -> None:
    mine.do("a sweep")
    board = mine.json("sweeps/rates/leaderboard.json")
    first, last = board["points"]
    assert (float(first["point"]["optimizer.lr"]), float(last["point"]["optimizer.lr"])) == (1e-2, 1e-6)
    assert first["mean"] > MAJORITY + 0.1 > last["mean"]


@pytest.mark.slow
def test_k_folds(mine: Newcomer) -> None:
    mine.do("k folds")
    board = mine.json("sweeps/folds/leaderboard.json")
    (point,) = board["points"]
    trials = [mine.json(f"sweeps/folds/trials/{id}/summary.json")["metrics"] for id in point["trials"]]
    scores = [metrics[board["metric"]] for metrics in trials]
    assert board["folds"] == [0, 1, 2] and point["n"] == len(set(point["trials"])) == 3
    assert math.isclose(point["mean"], sum(scores) / 3) and math.isclose(point["std"], np.std(scores, ddof=1))


@pytest.mark.slow
def test_compare(mine: Newcomer) -> None:
    shown, told = mine.do("compare")
    assert re.search(r"train.epochs +40 +150$", shown, re.MULTILINE)
    found = json.loads(told)
    assert found["config"] == {"train.epochs": [40, 150]}
    scores = [mine.metrics(run)["test/loss"] for run in ("customers", "long")]
    assert found["metrics"]["test/loss"] == scores


@pytest.mark.slow
def test_a_report(mine: Newcomer) -> None:
    mine.do("a report")
    page = (mine.folder / "runs" / "customers" / "report.html").read_text(encoding="utf-8")
    score = mine.metrics("customers")["test/accuracy"]
    assert "<svg" in page or "plotly" in page.lower()
    assert f"{score:.4f}" in page and "customers" in page
    study = (mine.folder / "sweeps" / "rates" / "report.html").read_text(encoding="utf-8")
    assert "optimizer.lr" in study and "rates" in study


@pytest.mark.slow
def test_predict_to_csv(mine: Newcomer) -> None:
    mine.do("predict to csv")
    found = mine.rows("preds.csv")
    assert column(found, "id") == LEAVERS["id"]
    assert share(LEAVERS["churned"], column(found, "label")) > MAJORITY + 0.1
    for row in found:
        likely = {kind: float(row[f"probability_{kind}"]) for kind in ("yes", "no")}
        assert (
            math.isclose(sum(likely.values()), 1, abs_tol=1e-5) and max(likely, key=lambda k: likely[k]) == row["label"]
        )


@pytest.mark.slow
def test_a_threshold(mine: Newcomer) -> None:
    mine.do("a threshold")
    kept = mine.json("runs/customers/threshold.json")
    before, after = mine.rows("preds.csv"), mine.rows("kept.csv")
    assert kept["positive"] == "yes" and 0 < kept["threshold"] < 1
    assert column(before, "probability_yes") == column(after, "probability_yes")
    for row in after:
        assert row["label"] == ("yes" if float(row["probability_yes"]) >= kept["threshold"] else "no")
    assert column(before, "label") != column(after, "label")


@pytest.mark.slow
def test_embeddings(mine: Newcomer) -> None:
    mine.do("embeddings")
    found, names = mine.rows("vectors.csv"), newcomer.pictures(30, seed=2)[1]
    vectors = np.array([[float(row[name]) for name in row if name[0] == "e" and name[1:].isdigit()] for row in found])
    assert vectors.shape == (30, 128)
    apart = ((vectors[:, None] - vectors[None]) ** 2).sum(-1)
    np.fill_diagonal(apart, np.inf)
    assert share(names, [names[nearest] for nearest in apart.argmin(1)]) > 0.9


@pytest.mark.slow
def test_a_learning_rate(mine: Newcomer) -> None:
    said, _ = mine.do("a learning rate")
    suggestion = mine.json("lr_finder/found/lr.json")["suggestion"]
    assert 1e-5 < suggestion < 1 and f"optimizer.lr={suggestion:g}" in said.splitlines()[-1]
    config = (mine.folder / "runs" / "found" / "config.yaml").read_text(encoding="utf-8")
    assert f"lr: {suggestion:g}" in config
    assert mine.metrics("found")["test/accuracy"] > MAJORITY + 0.1
