"""bigctl from Python: data that is given there trains a run, which says what it is and what it learned."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import bigctl
from bigctl import api, errors
from bigctl.config import schema
from bigctl.data import catalog
from bigctl.data.sources import memory
from bigctl.errors import BigctlError, DataError, RunError
from bigctl.reports import inline
from tests import small

RECIPE, frame = small.KEYS, small.columns


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> bigctl.api.Finished:
    return bigctl.train(RECIPE, tmp_path_factory.mktemp("python") / "run", data=frame(), quiet=True)


def test_the_package_shows_what_it_offers() -> None:
    assert {"train", "load", "compose", "BigctlError"} <= set(dir(bigctl))


def test_a_frame_trains_a_run_that_predicts_frames(trained: bigctl.api.Finished) -> None:
    assert trained["metrics"]["test/accuracy"] > 0.7
    assert trained.classes == ["large", "small"]
    new = frame(40, seed=1)
    found = trained.predict(new)
    assert found.shape == (40, 2) and np.mean(np.array(trained.classes)[found.argmax(1)] == new["kind"]) > 0.7
    one = trained.predict({"size": 1.2, "place": "north"})
    assert one.shape == (2,) and trained.describe({"size": 1.9, "place": "north"})["label"] == "large"
    assert trained.evaluate()["test/accuracy"] == pytest.approx(trained["metrics"]["test/accuracy"])
    assert json.loads(json.dumps(trained))["recipe"] == "mlp_cls"


def test_a_run_says_what_it_is(trained: bigctl.api.Finished) -> None:
    assert "test/accuracy" in repr(trained) and "2 classes: large, small" in repr(bigctl.load(trained["run"]))
    history = trained.history
    steps = history["step"].tolist() if hasattr(history, "columns") else [line["step"] for line in history]
    assert steps[-1] == 30
    page = trained.report(samples=0)
    assert page._repr_html_().startswith("<iframe srcdoc=") and "<script" not in page._repr_html_()
    assert page.save().read_text() == page.text


def test_curves_are_drawn_without_a_display(trained: bigctl.api.Finished) -> None:
    pytest.importorskip("matplotlib")
    assert trained.plot()._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]


def test_a_run_goes_on_with_its_own_data_alone(
    trained: bigctl.api.Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained["run"], tmp_path / "run")
    longer = ["data=memory", *RECIPE, "train.steps=32"]
    with pytest.raises(BigctlError, match=r"data\.digest"):
        bigctl.train(longer, tmp_path / "run", data=frame(seed=5), quiet=True)
    with monkeypatch.context() as elsewhere, pytest.raises(DataError) as error:
        elsewhere.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
        bigctl.train(longer, tmp_path / "run", quiet=True)
    assert "give it again: bigctl.train(config, run_dir, data=...)" in str(error.value)
    with pytest.raises(DataError, match="nothing is given"):
        bigctl.train(longer, tmp_path / "new", quiet=True)
    resumed = bigctl.train(longer, tmp_path / "run", quiet=True)  # the cache has it
    assert resumed["step"] == 32 and resumed["resumed_from"] == 30
    assert bigctl.train(longer, tmp_path / "run", data=frame(), quiet=True)["already_complete"]


def decoded(data: object, **keys: Any) -> tuple[Any, schema.Memory]:
    given = memory.read(data, schema.Memory(**keys))
    with memory.held(given) as config:
        return catalog.decode(config), config


def test_arrays_texts_and_pictures_are_data_too() -> None:
    numbers = np.arange(12.0).reshape(6, 2)
    labels = [0, 1, 2, 0, 1, 2]
    table, config = decoded((numbers, labels))
    assert config.unnamed and table.classes == ("0", "1", "2") and [*table.splits["train"]] == ["x0", "x1", "label"]
    texts, config = decoded((["one", "two"] * 3, ["a", "b"] * 3))
    assert texts.kind == "text" and config.text == "text" and texts.splits["train"]["label"].tolist() == [0, 1] * 3
    pictures, _ = decoded((np.zeros((6, 4, 5), np.uint8), labels))
    assert pictures.kind == "image" and pictures.splits["train"]["image"].shape == (6, 4, 5, 1)
    pair, _ = decoded(((numbers, labels), (numbers[:3], labels[:3])))
    assert {name: len(columns["label"]) for name, columns in pair.splits.items()} == {"train": 6, "validation": 3}
    rows = pa.table({"x": [1.5, 2.5], "label": ["a", "b"]})
    frames, _ = decoded((rows, rows))
    assert [*frames.splits] == ["train", "validation"]


def test_frames_of_pandas_are_data_too() -> None:
    pandas = pytest.importorskip("pandas")
    rows = pandas.DataFrame({"x": [1.5, None], "place": ["n", "n"], "label": ["a", "b"]})
    whole, config = decoded(rows)
    apart, other = decoded((rows[["x", "place"]], rows["label"]))
    assert whole.splits["train"]["label"].tolist() == apart.splits["train"]["label"].tolist() == [0, 1]
    assert config.digest == other.digest == decoded(rows.set_index([[5, 6]]))[1].digest


def test_columns_that_the_configuration_names_are_those_of_the_data() -> None:
    config = bigctl.compose(["recipe=mlp_cls", "data=csv", "data.path=gone.csv", "data.label=y", "data.drop=[id]"])
    with api._held({"id": [1, 2], "label": ["u", "v"], "y": ["p", "q"]}, config) as held:
        assert isinstance(held, schema.Memory) and (held.label, held.drop) == ("y", ["id"])


def test_a_baseline_takes_overrides_too() -> None:
    assert bigctl.baseline(["data=breast_cancer"])["metrics"]["test/accuracy"] > 0.9


def test_equal_data_has_one_digest_and_other_data_another() -> None:
    seen = {
        str(memory.read(data, schema.Memory()).config.digest)
        for data in (
            ({"x": [1.0, 2.0], "label": ["a", "b"]}),
            ({"x": np.array([1.0, 2.0]), "label": np.array(["a", "b"])}),
            ({"x": [1.0, None], "label": ["a", "b"]}),
            ({"x": [1.0, 0.0], "label": ["a", "b"]}),
            ({"x": [1.0, 2.0], "label": ["a", "a"]}),
            ({"y": [1.0, 2.0], "label": ["a", "b"]}),
        )
    }
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (3, "no set of examples"),
        ((np.zeros((3, 2)), [0, 1]), "3 examples and 2 labels"),
        ((np.zeros(3), [0, 1, 0]), "add a dimension"),
        ((np.zeros((2, 4, 4)), [0, 1]), "images are uint8.*255 \\* images"),
        ((np.full((2, 4, 4), 9.0), [0, 1]), r"\(images.round\(\).astype"),
        ((np.full((2, 4, 4), 999, np.uint16), [0, 1]), "images // 257"),
        ((np.zeros((2, 3, 8, 8), np.uint8), [0, 1]), "channels come first"),
        ({"x": [1, 2], "kind": [0, 1]}, "no target column 'label'.*kind"),
        ({"validation": {"x": [1], "label": [0]}}, "no training examples"),
        ({"x": [1, "a"], "label": [0, 1]}, "cannot be read"),
        (({"x": [1], "label": [0]}, [0]), "labels are given too"),
    ],
)
def test_what_is_no_data_is_refused(data: object, what: str) -> None:
    with pytest.raises(DataError) as error:
        decoded(data)
    import re

    assert re.search(what, str(error.value), re.DOTALL), str(error.value)


PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 5), np.uint8)
NUMBERS = np.random.default_rng(0).normal(size=(40, 3))
TEXTS = [f"a text {number}" for number in range(40)]


@pytest.mark.parametrize(
    ("recipe", "inputs", "holds", "hint"),
    [
        ("ngram_cls", PIXELS, "images with classes", "recipe=cnn_cls"),
        ("lstm_cls", [Image.fromarray(one) for one in PIXELS], "images with classes", "recipe=cnn_cls"),
        ("lstm_tag", PIXELS, "images with classes", "recipe=cnn_cls"),
        ("ngram_cls", NUMBERS, "table rows", "recipe=mlp_cls reads them; data.text=COLUMN"),
        ("gpt_lm", NUMBERS, "table rows", "recipe=mlp_cls"),
        ("mlp_cls", TEXTS, "texts with classes", "recipe=ngram_cls"),
        ("mlp_cls", PIXELS, "images with classes", "recipe=cnn_cls"),
        ("cnn_cls", TEXTS, "texts with classes", "recipe=ngram_cls"),
        ("cnn_cls", NUMBERS, "table rows", "recipe=mlp_cls"),
    ],
)
def test_a_recipe_that_reads_other_data_names_the_one_that_fits(
    recipe: str, inputs: object, holds: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(BigctlError) as error:
        bigctl.train([f"recipe={recipe}"], tmp_path / "run", data=(inputs, [0, 1] * 20), quiet=True)
    assert f"the data holds {holds}" in str(error.value) and hint in str(error.value)


def test_of_several_columns_one_of_texts_is_advised() -> None:
    frame = {"age": [1.0, 2.0], "title": ["a", "b"], "body": ["c", "d"], "label": ["x", "y"]}
    with pytest.raises(DataError, match="which column holds the text is not told.*data.text=title"):
        memory.read(frame, schema.Memory(), texts=True)


def test_a_notebook_shows_a_bar_and_curves() -> None:
    shown: list[str] = []
    progress = inline.Progress(10, "<run>", shown.append)
    for step in (2, 4, 10):
        progress.write(step, {"train/loss": 1.0 / step, "epoch": 1.0})
    progress.result(10, {"test/accuracy": 0.75})
    assert "compiling" in shown[0] and "<run>" not in shown[0]
    assert "step 10/10" in shown[-1] and "test/accuracy 0.75" in shown[-1] and "<polyline" in shown[-1]


def test_a_screen_that_fails_does_not_stop_a_run() -> None:
    def gone(content: str) -> None:
        raise RuntimeError("no front end")

    progress = inline.Progress(2, "run", gone)
    progress.write(2, {"train/loss": 1.0})


def test_a_run_that_is_not_there_is_not_loaded() -> None:
    with pytest.raises(RunError):
        bigctl.load("no-such-run")


def test_errors_name_arguments_and_no_flags(trained: bigctl.api.Finished) -> None:
    run = trained["run"]
    wrong: list[tuple[Any, str]] = [
        (lambda: bigctl.compose(["recipe=mlp_cls"], plugins=["nowhere"]), "plugins: there is no module"),
        (lambda: bigctl.compose(["recipe=mlp_cls"], config_dirs=["nowhere"]), "config_dirs takes the folder"),
        (lambda: bigctl.compose(["recipe=mlp_cls", "nothing=1"]), "overrides: there is no key"),
        (lambda: bigctl.train(["recipe=mlp_cls"], "new", resume="must"), 'resume="auto" starts one'),
        (lambda: bigctl.train(["recipe=mlp_cls"], "new", resume="maybe"), "resume: 'maybe' is no way to begin"),
        (lambda: bigctl.train(["recipe=mlp_cls"], run, resume="never"), "holds a run already"),
        (lambda: bigctl.train(["recipe=mlp_cls"], allow_drift="seed"), "allow_drift: 'seed' is one text"),
        (lambda: bigctl.load(run, step="bst"), "step: 'bst' is no checkpoint"),
        (lambda: bigctl.load(run).with_threshold(7), "threshold: 7 is no threshold"),
        (lambda: bigctl.load(run).choose_threshold("best"), "threshold: 'best' is no threshold"),
        (lambda: bigctl.baseline([]), "no data set is chosen"),
    ]
    for call, said in wrong:
        with pytest.raises(bigctl.BigctlError, match=re.escape(said)) as caught:
            call()
        assert "--" not in str(caught.value)


def test_a_notebook_shows_the_line_that_called_and_the_error() -> None:
    """IPython asks an exception for what is shown of it, in place of every frame within bigctl."""
    with pytest.raises(bigctl.BigctlError) as caught:
        bigctl.train(["recipe=mlp_cls", "optimizer.lrr=1"])
    line, said = caught.value._render_traceback_()
    assert re.fullmatch(r'line \d+: bigctl.train\(\["recipe=mlp_cls", "optimizer.lrr=1"\]\)', line)
    assert said == f"ConfigError: {caught.value}" and "did you mean optimizer.lr?" in said


def test_flags_become_arguments_and_commands_stay() -> None:
    with pytest.raises(bigctl.BigctlError) as caught, errors.named_as_arguments():
        hint = "--allow-drift optimizer.lr --allow-drift seed if that is meant, or another --name; `bigctl x --name a`"
        raise bigctl.BigctlError("is wrong", where="--run-dir", hint=hint)
    assert caught.value.where == "run_dir"
    assert caught.value.hint == (
        "allow_drift=['optimizer.lr', 'seed'] if that is meant, or another run_dir; `bigctl x --name a`"
    )
