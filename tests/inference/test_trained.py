"""A run on texts, loaded in Python, predicts what its evaluation was about."""

from __future__ import annotations

import numpy as np
import pytest

import bigctl as package
from bigctl.engine import resolve
from bigctl.files import sha256
from bigctl.inference.trained import TrainedRun
from tests import topics


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    return package.load(topics.trained(tmp_path_factory).folder / "runs" / "topics")


@pytest.fixture
def in_folder(trained: TrainedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained.run.path.parents[1])  # the run names its data by a relative path


def test_texts_get_the_predictions_that_were_scored(trained: TrainedRun, in_folder: None) -> None:
    evaluation = trained.score("test")
    dataset = resolve.prepare_data(trained.config, trained.run.tokenizer)
    (texts,), labels = dataset.texts["test"], dataset.splits["test"]["label"]
    found = trained.predict([texts[n] for n in range(len(texts))])
    assert found.shape == (60, 2) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-6)
    assert np.mean(found.argmax(1) == labels) == pytest.approx(evaluation.metrics["test/accuracy"])
    log_likelihood = np.log(found[np.arange(len(found)), labels])
    assert -log_likelihood.mean() == pytest.approx(evaluation.metrics["test/loss"], rel=1e-4)


def test_neither_order_nor_company_changes_a_prediction(trained: TrainedRun) -> None:
    texts = [words for words, _ in topics.rows(seed=1, count=150)]
    texts[7] = " ".join(["soup"] * 200)  # of another length than the rest
    together = trained.predict(texts)
    np.testing.assert_allclose(trained.predict(texts[::-1])[::-1], together, atol=1e-5)
    np.testing.assert_allclose(trained.predict([texts[7]])[0], together[7], atol=1e-5)
    assert trained.predict([]).shape == (0, 2)


def test_text_that_just_fits_is_not_called_cut(trained: TrainedRun) -> None:
    fits, longer = " ".join(["moon"] * (topics.LONGEST - 2)), " ".join(["moon"] * (topics.LONGEST - 1))
    records = trained.label_texts([longer, "moon", fits])
    assert [record.get("cut", False) for record in records] == [True, False, False]
    assert [record.get("cut", False) for record in trained.label_texts([longer])] == [True]


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (["fine", " \n"], "the text at 1 is empty"),
        ([("a", "b")], "takes single texts"),
        ([("a", 3)[1:]], "int at 0 is no text"),
        (["half \ud83d"], "lone surrogate"),
    ],
)
def test_what_is_no_text_is_refused(trained: TrainedRun, given: object, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        trained.predict(given)  # type: ignore[arg-type]


def test_tokenizer_is_the_one_of_training(trained: TrainedRun) -> None:
    assert trained.features.tokenizer is not None
    assert sha256(trained.run.tokenizer) == trained.features.tokenizer["sha256"]
    assert trained.tokenizer.to_str(pretty=True) == trained.run.tokenizer.read_text(encoding="utf-8")
