"""Sample predictions are those of the model, on the validation split, the worst mistakes first."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.engine import resolve
from bigctl.inference.grad_cam import class_activation
from bigctl.reports import examples, pictures, run
from bigctl.runs.directory import RunDirectory
from tests import topics

pytestmark = pytest.mark.fewer


def test_images_are_the_worst_mistakes_and_then_others(tmp_path: Path) -> None:
    from PIL import Image

    config = bigctl.compose(["recipe=cnn_cls", "data=digits", "train.steps=12", "eval.test=false"])
    bigctl.train(config, tmp_path / "digits", quiet=True)
    found = examples.choose(examples.Seen(RunDirectory(tmp_path / "digits")), 100)
    trained = bigctl.load(tmp_path / "digits")
    split = resolve.prepare_data(trained.config, tmp_path).splits["validation"]
    guesses = trained.predict(np.asarray(split["inputs"])).argmax(1)
    wrong = [item for item in found.items if item.wrong]
    assert len(wrong) == min(100, int((guesses != split["label"]).sum())) > 0
    assert [item.wrong for item in found.items] == sorted((item.wrong for item in found.items), reverse=True)
    assert [item.loss for item in wrong] == sorted((item.loss for item in wrong), reverse=True)
    for item in found.items:
        assert (int(item.label), int(item.predicted)) == (split["label"][item.row], guesses[item.row])
        picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(item.image.partition(",")[2]))))
        assert (picture == split["inputs"][item.row][..., 0]).all()
    page = run.run_page(RunDirectory(tmp_path / "digits"), samples=5)
    assert page.count('<img src="data:image/png;base64,') == 5 + 1  # the filters of the first layer
    assert page.count('<img src="data:image/jpeg;base64,') == 5 + 10 and page.count('class="looked"') == 5
    assert all(f">row {item.row}</small>" in page for item in found.items[:5])
    assert [gallery.label for gallery in found.galleries] == [str(digit) for digit in range(10)]
    assert sum(g.count - g.right for g in found.galleries) == int((guesses != split["label"]).sum())
    assert sum(g.count for g in found.galleries) == len(split["label"])


def test_where_the_model_looks_is_shown_of_the_mistakes_on_test_too(tmp_path: Path) -> None:
    config = bigctl.compose(["recipe=cnn_cls", "data=digits", "train.steps=12"])
    bigctl.train(config, tmp_path / "digits", quiet=True)
    trained = bigctl.load(tmp_path / "digits")
    summary = trained.run.summary()
    lacking: list[str] = []
    found, wrong = examples.shown(trained.run, 3, summary, predicts=True, lacking=lacking)
    assert found and wrong and not lacking and len(found.items) == len(wrong.items) == 3
    test = np.asarray(trained.data().splits["test"]["inputs"])[[item.row for item in wrong.items]]
    places = class_activation(trained, test, np.array([int(item.predicted) for item in wrong.items], np.int32))
    assert places is not None
    assert [item.looked for item in wrong.items] == [pictures.glowing(*each) for each in zip(test, places, strict=True)]
    assert all(item.looked for item in found.items)
    page = run.run_page(trained.run, samples=3)
    assert page.count('class="looked"') == 6 and page.count("what speaks for the predicted class") == 2
    _, unasked = examples.shown(trained.run, 3, summary, predicts=False, lacking=lacking)
    assert unasked and not any(item.looked for item in unasked.items)
    _, others = examples.shown(trained.run, 3, {**summary, "selected_step": 1}, predicts=True, lacking=lacking)
    assert others and not any(item.looked for item in others.items)  # of weights that are not at hand


@pytest.mark.slow
def test_texts_are_shown_with_what_is_said_of_them(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(topics.trained(tmp_path_factory).folder)
    folder = Path("runs/topics")
    found = examples.choose(examples.Seen(RunDirectory(folder)), 4)
    assert found.kind == "text" and len(found.items) == 4 and all(item.text for item in found.items)
    truth = dict(topics.rows())
    assert all(truth[item.text] == item.label for item in found.items)
    monkeypatch.chdir("..")  # the data is not where the run says: the page is about the rest
    page = run.run_page(RunDirectory(Path("topics") / folder))
    assert "sample predictions: " in page and "Learning curves" in page
