"""Promises of `bigctl explain` for tables and pictures: Shapley values, occlusion and gradients held to other ways."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.inference.explaining import images, tables
from bigctl.inference.explaining.images import ImageExplainer
from bigctl.inference.explaining.importance import permutation_importance
from bigctl.inference.explaining.tables import TableExplainer
from bigctl.inference.trained import TrainedRun
from bigctl.reports.loaded import LoadedRun
from tests import small

NUMBER = [*small.KEYS, "model.head=regression", "data.label=size", "train.steps=3"]
DIGITS = ["recipe=cnn_cls", "data=digits", "model.channels=[4]", "model.hidden=[]", "train.steps=3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs `small` (two classes), `number` (a regression) and `digits`."""
    where = small.trained(tmp_path_factory)
    runs = {"number": [*NUMBER, "data=csv", f"data.path={where / 'rows.csv'}"], "digits": DIGITS}
    for name, keys in runs.items():
        if not (where / "runs" / name).exists():
            bigctl.train([*keys, "train.tensorboard=false"], where / "runs" / name, quiet=True)
    return where


def loaded(folder: Path, name: str) -> TrainedRun:
    return TrainedRun.load(str(folder / "runs" / name))


# -------------------------------------------------------------------------------------------------------------- tables


def by_orders(worth: dict[frozenset[int], float], count: int) -> list[float]:
    """Shapley's definition: the mean of what each adds, over all orders."""
    total, orders = [0.0] * count, [*itertools.permutations(range(count))]
    for order in orders:
        for place, one in enumerate(order):
            total[one] += worth[frozenset(order[: place + 1])] - worth[frozenset(order[:place])]
    return [value / len(orders) for value in total]


def test_exact_values_are_the_mean_over_all_orders() -> None:
    draw = np.random.default_rng(0)
    sets = [frozenset(s) for size in range(6) for s in itertools.combinations(range(5), size)]
    worth = {each: float(draw.normal()) for each in sets}

    def ask(known: np.ndarray) -> np.ndarray:
        return np.array([worth[frozenset(np.flatnonzero(row).tolist())] for row in known])

    wanted = by_orders(worth, 5)
    np.testing.assert_allclose(tables.exact(ask, 5).values, wanted, atol=1e-12)
    found = tables.sampled(ask, 5, 2000, seed=1)
    assert found.errors is not None and (np.abs(found.values - wanted) < 4 * found.errors).all()
    assert found.errors.max() < 0.05 and found.values.sum() == pytest.approx(worth[sets[-1]] - worth[sets[0]])


def test_values_of_a_linear_model_are_known() -> None:
    draw = np.random.default_rng(0)
    weights, row, rows = draw.normal(size=6), draw.normal(size=6), draw.normal(size=(7, 6))

    def ask(known: np.ndarray) -> np.ndarray:
        return np.where(known[:, None], row, rows).mean(1) @ weights

    wanted = weights * (row - rows.mean(0))
    np.testing.assert_allclose(tables.exact(ask, 6).values, wanted, atol=1e-12)
    found = tables.sampled(ask, 6, 3, seed=0)
    np.testing.assert_allclose(found.values, wanted, atol=1e-12)
    np.testing.assert_allclose(found.errors, 0, atol=1e-12)


def test_columns_of_a_run_add_up_by_its_own_predictions(folder: Path) -> None:
    trained = loaded(folder, "small")
    explainer = TableExplainer(trained, rows=20, seed=3)
    row = np.asarray(trained.data().splits["test"]["inputs"][:1])
    (found,) = explainer.explain(row, wanted="large")
    own = [[0], [*range(1, row.shape[1])]]  # `size` is a number, `place` a category
    worth = {}
    for known in ((), (0,), (1,), (0, 1)):
        rows = explainer.background.copy()
        for column in known:
            rows[:, own[column]] = row[:, own[column]]
        probability = trained.predict(rows)[:, trained.classes.index("large")].astype(np.float64)
        worth[frozenset(known)] = float(np.log(probability / (1 - probability)).mean())
    assert found.names == ("size", "place") and found.errors is None
    np.testing.assert_allclose(found.attribution.values, by_orders(worth, 2), atol=1e-3)
    assert abs(found.attribution.values[0]) > 0.1 and found.cells[1] in ("north", "south")
    assert "20 rows of the training split, drawn with seed 3" in str(found.attribution.baseline)


def test_a_number_is_explained_in_its_own_unit(folder: Path) -> None:
    trained = loaded(folder, "number")
    explainer = TableExplainer(trained)
    rows = np.asarray(trained.data().splits["validation"]["inputs"][:2])
    for found, value in zip(explainer.explain(rows), trained.predict(rows)[:, 0], strict=True):
        base = float(trained.predict(explainer.background).mean())
        assert found.attribution.score == pytest.approx(float(value), abs=1e-4)
        assert found.attribution.values.sum() == pytest.approx(float(value) - base, abs=1e-4)


def test_the_column_that_matters_is_found(folder: Path) -> None:
    trained = loaded(folder, "small")
    found = permutation_importance(trained, "validation")
    split = trained.data().splits["validation"]
    truth = trained.predict(np.asarray(split["inputs"]))[np.arange(found.examples), np.asarray(split["label"])]
    assert found.loss == pytest.approx(-np.log(truth).mean(), rel=1e-4)
    size, place = (found.names.index(name) for name in ("size", "place"))
    assert found.low[size] > 0.02 and found.values[size] > 5 * abs(found.values[place])
    assert found.low[size] < found.values[size] < found.high[size]


# -------------------------------------------------------------------------------------------------------------- images


def logits(trained: TrainedRun, pictures: np.ndarray) -> np.ndarray:
    return np.asarray(trained.task.outputs(trained.model, {"inputs": jnp.asarray(pictures, jnp.float32)}))


def test_pictures_are_explained_against_their_mean_colour(folder: Path) -> None:
    trained = loaded(folder, "digits")
    explainer = ImageExplainer(trained)
    picture = np.asarray(trained.data().splits["test"]["inputs"][0])
    mean = np.full_like(picture, 0, np.float32) + 255 * np.float32(trained.features.mean)
    (found,) = explainer.explain(picture[None], wanted="4")
    both = logits(trained, np.stack([picture, mean]))[:, 4]
    assert found.attribution.completeness <= 1e-3 and found.attribution.values.shape == (8, 8)
    assert (
        found.attribution.values.sum() == pytest.approx(both[0] - both[1], abs=2e-3) and abs(both[0] - both[1]) > 0.01
    )
    (hidden,) = explainer.explain(picture[None], images.OCCLUSION, "4")
    shown = picture.astype(np.float32)
    shown[5:6, 2:3] = mean[0, 0]
    drop = both[0] - logits(trained, shown[None])[0, 4]
    assert hidden.attribution.values[5, 2] == pytest.approx(drop, abs=1e-4) and abs(drop) > 1e-4
    (seen,) = explainer.explain(picture[None], images.GRAD_CAM)
    assert seen.attribution.values.max() <= 1 and seen.attribution.completeness is None


def test_patches_cover_a_picture_evenly() -> None:
    for shape in ((8, 8, 1), (28, 30, 3), (5, 17, 1)):
        rows, columns = images.patches(shape)
        cells = images.patch_of(shape)
        assert cells.shape == shape[:2] and set(cells.ravel().tolist()) == set(range(rows * columns))
        assert np.bincount(cells.ravel()).max() <= 4 * np.bincount(cells.ravel()).min()


# ---------------------------------------------------------------------------------------------------------- the command


def test_the_command_tells_of_tables_and_pictures(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    assert main(["explain", "small", "--split", "test", "--count", "2", "--json", "--html", "why.html"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [e["columns"] for e in found["explanations"]] == [["size", "place"]] * 2
    assert main(["explain", "digits", "--split", "test", "--count", "1", "--json", "--html", "picture.html"]) == 0
    assert json.loads(capsys.readouterr().out)["shape"] == [8, 8]
    assert (folder / "picture.html").read_text().count('src="data:image/png;base64,') == 2
    assert main(["explain", "small", "--method", "permutation", "--json"]) == 0
    assert {row["column"] for row in json.loads(capsys.readouterr().out)["columns"]} == {"size", "place"}
    assert main(["explain", "number", "--split", "validation", "--count", "1"]) == 0
    assert "value " in capsys.readouterr().out


def test_python_explains_one_row(folder: Path) -> None:
    found = LoadedRun.load(str(folder / "runs" / "small")).explain({"size": 0.9, "place": "north"}, wanted="large")
    assert found.cells == ("0.9", "north")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["number", "--split", "validation", "--class", "large"], "the run predicts a number, it has no classes"),
        (["small", "--text", "soup"], "the run was trained on tables, not on texts"),
        (["digits", "--method", "permutation"], "the run is on images, and no table"),
        (["small", "rows.csv", "--method", "permutation"], "looks at a whole split"),
        (["digits", "none.png"], "none.png"),
        (["small", "rows.csv", "--class", "lage"], "did you mean large?"),
    ],
)
def test_what_cannot_be_explained_is_said_in_a_line(
    folder: Path,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    (folder / "none.png").write_text("no picture")
    assert main(["explain", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") <= 2, error
