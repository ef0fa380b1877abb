"""Labels that were changed by hand are the ones that are suspected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bigctl.baselines import suspects
from bigctl.cli.main import main
from tests import small


def test_changed_labels_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    kind = np.arange(240) % 3
    rows = {"a": kind + rng.normal(0, 0.15, 240), "b": (kind == 1) + rng.normal(0, 0.15, 240)}
    wrong = np.arange(0, 240, 24)
    given = kind.copy()
    given[wrong] = (kind[wrong] + 1) % 3
    small.write(tmp_path / "rows.csv", {**rows, "kind": np.array(list("xyz"))[given]})
    words = ["data", "csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=kind", "--suspects"]
    assert main([*words, "--most", "10", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 240 and 10 <= told["found"] <= 14 and len(told["worst"]) == 10
    places = {int(each["origin"].rpartition(":")[2]) - 2 for each in told["worst"]}
    assert len(places & set(wrong.tolist())) >= 9
    for each in told["worst"]:
        line = int(each["origin"].rpartition(":")[2]) - 2
        assert each["given"] == "xyz"[given[line]] and each["likely_probability"] > each["given_probability"]
        assert line not in wrong or each["likely"] == "xyz"[kind[line]]
    assert main(words) == 0 and "look at them before you change any" in capsys.readouterr().out


def test_ranking_is_that_of_the_confident_joint() -> None:
    told = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.1, 0.9], [0.05, 0.95], [0.45, 0.55]])
    labels = np.array([0, 0, 1, 1, 0, 0])  # mean confidence: 0.525 of the first class, 0.85 of the second
    order, likely, confident = suspects.ranked(told, labels)
    assert order.tolist() == [4, 5] and likely.tolist() == [0, 0, 1, 1, 1, 1] and confident == 1


def test_what_has_no_labels_to_suspect_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small.write(tmp_path / "few.csv", small.columns(30))
    (tmp_path / "homes.csv").write_text("size,price\n" + "".join(f"{n},{n * 1.5}\n" for n in range(90)))
    for words, said in (
        ([f"data.path={tmp_path / 'few.csv'}", "data.label=kind"], "30 examples of 2 classes tell nothing"),
        ([f"data.path={tmp_path / 'homes.csv'}", "data.label=price", "recipe=mlp_cls", "model.head=regression"],
         "no single class"),
    ):  # fmt: skip
        assert main(["data", "csv", *words, "--suspects"]) == 2
        assert said in capsys.readouterr().err
    assert main(["data", "--suspects"]) == 2 and "no data set is named" in capsys.readouterr().err
