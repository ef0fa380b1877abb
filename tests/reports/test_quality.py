"""The page of a run shows what its scores and probabilities are worth, and its worst mistakes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from bigctl.recipes import curves

import bigctl
from bigctl.reports import quality
from bigctl.runs.directory import RunDirectory
from tests import small


def test_each_curve_has_a_sentence_with_its_numbers() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(400) < 0.25
    scores = truth * 2 + rng.normal(0, 1, 400)
    told = curves.described(1 / (1 + np.exp(-scores)), truth, scores=scores, positive="<yes>")
    roc, pairs, reliability = quality.figures(json.loads(json.dumps(told)))
    area = float(np.trapezoid(*reversed(curves.roc(scores, truth))))
    found = re.search(r"the area under it is ([0-9.]+)", roc.caption)
    assert found and float(found[1]) == pytest.approx(area, abs=2e-3)
    assert f"{truth.mean():.0%} of the examples" in pairs.caption
    assert "Reliability" in reliability.caption and "&lt;yes&gt;" in json.dumps(reliability.to_json())
    assert quality.figures({}) == []


@pytest.mark.parametrize("classes", [3, 100])
def test_of_several_classes_the_mean_and_the_worst_are_drawn(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, 2000)
    truth = labels[:, None] == np.arange(classes)
    names = [f"<class {number}>" for number in range(classes)]
    told = curves.one_vs_rest(rng.random((2000, classes)) + 0.5 * truth, truth, names)
    roc, pairs = quality.figures(json.loads(json.dumps({"one_vs_rest": told})))
    drawn = [each["name"] for each in roc.to_json()["data"]]
    assert len(drawn) == 2 + min(classes, curves.WORST) and drawn[0] == "chance" and drawn[-1].startswith("mean 0.")
    assert f"the mean area under the ROC curve of {classes} classes is" in roc.caption
    assert ("Drawn are the 5 lowest" in roc.caption) == (classes == 100)
    assert "average precision" in pairs.caption and "<class" not in json.dumps(roc.to_json())


def test_the_page_shows_the_worst_mistakes_on_the_test_split(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = small.trained(tmp_path_factory)
    run = RunDirectory(folder / "runs" / "small")
    named = run.summary()["mistakes"]
    assert named and run.summary()["positive"] == "small"
    lines = (folder / "rows.csv").read_text().splitlines()
    text = bigctl.load(run.path).report(samples=16).text
    section = text[text.index('id="mistakes"') : text.index('id="samples"')]
    rows = re.findall(r"<tr[^>]*><td[^>]*>rows\.csv:(\d+)</td><td[^>]*>(\w+)</td>", section)
    assert len(rows) == len(named)
    assert all(lines[int(line) - 1].endswith(f",{label}") for line, label in rows)
    assert "ROC curve" in text and "positive class small" in text


def test_settings_of_another_component_are_held_against_its_own_defaults(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    text = bigctl.load(small.trained(tmp_path_factory) / "runs" / "small").report(samples=4).text
    section = text[text.index('id="configuration"') :]
    table = section[: section.index("</table>")]
    rows = dict(re.findall(r'<th scope="row">([\w.]+)</th><td><b>(.*?)</b></td>', table))
    assert {
        "data.kind": "csv",
        "data.label": "kind",
        "optimizer.lr": "0.05",
        "train.steps": "30",
    }.items() <= rows.items()
    assert not {"data.test_fraction", "data.separator", "data.on_bad", "data.missing", "schedule.horizon"} & rows.keys()
    assert "by itself" not in table and "from Python" in text
