"""Pictures and texts are changed as it says, and accuracy is told under each change."""

from __future__ import annotations

import colorsys
import json
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference.attacks import corruptions, text_changes
from bigctl.reports import trust
from bigctl.runs import directory
from tests import topics

pytestmark = pytest.mark.fewer


@pytest.mark.parametrize("name", corruptions.names())
@pytest.mark.parametrize("shape", [(3, 24, 20, 3), (2, 80, 70, 1)])
def test_more_severe_corruptions_change_pictures_more(name: str, shape: tuple[int, ...]) -> None:
    rows = np.linspace(40, 200, shape[1])[None, :, None, None] + np.linspace(0, 40, shape[2])[None, None, :, None]
    images = np.broadcast_to(rows, shape).astype(np.uint8) // np.arange(1, shape[-1] + 1, dtype=np.uint8)
    images[:, ::4] = images[:, ::4] // 2
    apart = []
    for severity in corruptions.SEVERITIES:
        found = corruptions.corrupted(images, name, severity)
        assert found.shape == shape and found.dtype == np.uint8
        apart.append(float(np.square(found.astype(float) - images).mean()))
    assert apart == sorted(apart) and 0 < apart[0] < apart[-1]
    assert (corruptions.corrupted(images, name, 3, seed=1) == corruptions.corrupted(images, name, 3, seed=1)).all()


def test_corruptions_are_those_of_the_formulas() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(30, 180, (2, 16, 16, 3)).astype(np.uint8)
    lighter = corruptions.corrupted(images, "brightness", 2)
    for place in ((0, 0, 0), (1, 7, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*(images[place] / 255))
        expected = np.array(colorsys.hsv_to_rgb(hue, saturation, min(value + 0.1, 1))) * 255
        assert lighter[place] == pytest.approx(expected, abs=1)
    flat = corruptions.corrupted(images, "contrast", 5).astype(float)
    mean = images.mean((1, 2), keepdims=True)
    assert flat == pytest.approx((images - mean) * 0.15 + mean, abs=1)
    noise = corruptions.corrupted(np.full((4, 32, 32, 1), 128, np.uint8), "noise", 5).astype(float)
    assert noise.std() / 255 == pytest.approx(0.1, rel=0.05)


def test_texts_are_changed_inside_of_words_and_the_same_for_the_same_seed() -> None:
    text = "The weather was remarkably pleasant throughout yesterday afternoon."
    changes = text_changes.usual()
    slipped = changes["slips in 10% of letters"](text, np.random.default_rng(0))
    assert slipped != text and slipped == changes["slips in 10% of letters"](text, np.random.default_rng(0))
    assert [word[0] for word in slipped.split()] == [word[0] for word in text.split()]
    assert abs(len(slipped) - len(text)) <= 6
    assert changes["no punctuation"]("a, b!", np.random.default_rng(0)) == "a b"
    assert changes["upper case"](text, np.random.default_rng(0)) == text.upper()
    assert changes["slips in 2% of letters"]("a b", np.random.default_rng(0)) == "a b"


def test_a_checklist_replaces_whole_words(tmp_path: Path) -> None:
    file = tmp_path / "list.yaml"
    file.write_text("- {name: names, replace: {alice: [mary]}}\n- {name: greeting, prefix: 'Well,'}\n")
    changes = text_changes.checklist(file)
    rng = np.random.default_rng(0)
    assert changes["names"]("Alice met malice and ALICE", rng) == "Mary met malice and Mary"
    assert changes["greeting"]("it rains", rng) == "Well, it rains"
    for text, said in (
        ("a: 1", "is no list"), ("- {name: a}", "is no invariance"), ("[", "cannot be read"),
        ("- {name: a, prefix: 3}", "is no text"), ("- {name: a, prefix: b}\n- {name: a, suffix: b}", "a name twice"),
        ("- {name: a, prefix: b, suffix: c}", "is no invariance"),
    ):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ConfigError, match=said):
            text_changes.checklist(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        text_changes.checklist(tmp_path / "none.yaml")


@pytest.mark.slow
def test_runs_are_scored_under_changes(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = topics.trained(tmp_path_factory).folder
    monkeypatch.chdir(folder)  # its data is relative to it
    texts = folder / "runs" / "topics"
    keys = ["recipe=cnn_cls", "data=digits", "train.steps=100", "model.channels=[8]", "train.tensorboard=false"]
    bigctl.train([*keys, "optimizer.lr=0.01"], tmp_path / "digits", quiet=True)
    (tmp_path / "list.yaml").write_text("- {name: nothing, replace: {zzzz: b}}\n- {name: prefix, prefix: So}\n")
    listed = ["--checklist", str(tmp_path / "list.yaml")]

    def told(run: Path, *words: str) -> dict:
        capsys.readouterr()
        assert main(["eval", str(run), "--robust", *words, "--count", "60", "--json"]) == 0
        return json.loads(capsys.readouterr().out)["robust"][0]

    found = told(tmp_path / "digits", "corruptions")
    noise = [row["accuracy"] for row in found["rows"] if row["name"] == "noise"]
    assert len(found["rows"]) == 25 and found["clean"] > 0.8 and min(noise) > 0.3
    rows = {row["name"]: row for row in told(texts, "text", *listed)["rows"]}
    assert rows["nothing"] == {"name": "nothing", "count": 0} and rows["prefix"]["count"] > 10
    assert all(0 <= row["accuracy"] <= 1 for row in rows.values() if row["count"])
    for run, title in ((texts, "Under text"), (tmp_path / "digits", "Under corruptions")):
        page = trust.of_run(directory.locate(str(run)))
        assert page is not None and page.tables[0].title == title
    for run, words, said in (
        (texts, ["corruptions"], "corruptions are of pictures"), (tmp_path / "digits", ["text"], "are no texts"),
        (texts, ["linf=0.1"], "no numbers that could be moved"), (texts, ["linf=0.1", *listed], "is for texts"),
    ):  # fmt: skip
        assert main(["eval", str(run), "--robust", *words]) == 2
        assert said in capsys.readouterr().err
    assert main(["eval", str(texts), "--robust", "text", "--count", "30", *listed]) == 0
    assert "other answers" in capsys.readouterr().out
