"""Promises of distillation: what the teacher says is what it predicts, a resumed student is the same to the bit, and a
teacher that does not fit is refused in a line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cache_root import cache_root
from bigctl.cli.main import main
from bigctl.config.compose import compose
from bigctl.engine import distil, open_run
from bigctl.engine.run import Options
from bigctl.errors import BigctlError, ConfigError, RunError, TrainingFailed
from bigctl.files import sha256
from bigctl.runs import provenance
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.task import TEACHER
from tests import small

pytestmark = pytest.mark.fewer


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("distil")
    shutil.copytree(small.trained(tmp_path_factory), made, dirs_exist_ok=True)
    return made


def keys(folder: Path, *more: str) -> list[str]:
    data = ["data=csv", f"data.path={folder / 'rows.csv'}", f"distil.teacher={folder / 'runs' / 'small'}"]
    return [*small.KEYS, *data, "model.hidden=[3]", "seed=1", "train.steps=20", "checkpoint.every=10", *more]


@pytest.fixture(scope="module")
def student(folder) -> Path:
    bigctl.train(keys(folder), folder / "student", quiet=True)
    return folder / "student"


def weights(run: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flatten(bigctl.load(str(run), step="last").params).items()}


def kept(run: Path) -> Path:
    """The file of the logits that a student was given, found by their digest."""
    wanted = json.loads((run / "run.json").read_text())[TEACHER]["logits"]
    return next(file for file in (cache_root() / TEACHER).rglob("*.npy") if sha256(file) == wanted)


def test_the_teacher_says_of_each_row_what_it_predicts_and_the_student_heeds_it(folder, tmp_path):
    bigctl.train(keys(folder, "distil.alpha=1", "distil.temperature=3"), tmp_path / "student", quiet=True)
    teacher = bigctl.load(str(folder / "runs" / "small"))
    inputs = teacher.data().splits["train"]["inputs"]
    logits = np.load(kept(tmp_path / "student"))
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(likely, teacher.predict(np.asarray(inputs)), atol=1e-6)
    record = json.loads((tmp_path / "student" / "run.json").read_text())[TEACHER]
    assert provenance.derived({TEACHER: record}) == f"labels and small, step {teacher.step}"
    assert record["run"] == "small" and record["step"] == teacher.step and len(record["checkpoint"]["manifest-0.json"])
    lines = [json.loads(line) for line in (tmp_path / "student" / "metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "train/distil" in line]
    assert logged and all(line["train/loss"] == pytest.approx(line["train/distil"]) for line in logged)
    assert logged[-1]["train/distil"] < logged[0]["train/distil"]
    assert {"train/cross_entropy"} <= logged[-1].keys()
    assert bigctl.load(str(tmp_path / "student")).evaluate("test")  # without its teacher


def test_a_student_that_is_stopped_and_resumed_is_the_same_to_the_bit(folder, student, tmp_path, caplog):
    whole = weights(student)
    shutil.copytree(folder / "runs", tmp_path / "runs")
    teacher = f"distil.teacher={tmp_path / 'runs' / 'small'}"
    half = [*keys(folder)[:-2], teacher, "checkpoint.every=10"]
    bigctl.train([*half, "train.steps=10"], tmp_path / "student", quiet=True)
    shutil.move(tmp_path / "runs", tmp_path / "gone")  # what it said is kept
    bigctl.train([*half, "train.steps=15"], tmp_path / "student", quiet=True)
    kept(tmp_path / "student").unlink()
    with pytest.raises(RunError, match="no such run"):
        bigctl.train([*half, "train.steps=20"], tmp_path / "student", quiet=True)
    shutil.move(tmp_path / "gone", tmp_path / "runs")  # and else it is asked again
    bigctl.train([*half, "train.steps=20"], tmp_path / "student", quiet=True)
    found = weights(tmp_path / "student")
    assert whole.keys() == found.keys() and all(np.array_equal(whole[name], found[name]) for name in whole)
    assert "computed anew" not in caplog.text


def test_what_was_computed_before_a_kill_is_not_computed_again(folder, tmp_path):
    bigctl.train(keys(folder, "train.steps=1"), tmp_path / "one", quiet=True)
    file = kept(tmp_path / "one")
    logits = np.load(file)
    known = np.full_like(logits, 7)
    np.save(file.with_suffix(".partial.npy"), known)
    file.with_suffix(".partial.npy").rename(file.with_suffix(".partial"))
    file.unlink()
    bigctl.train(keys(folder, "train.steps=1"), tmp_path / "two", quiet=True)
    assert (np.load(file) == 7).all()
    known[:] = np.nan
    np.save(file.with_suffix(".partial.npy"), known)
    file.with_suffix(".partial.npy").rename(file.with_suffix(".partial"))
    file.unlink()
    bigctl.train(keys(folder, "train.steps=1"), tmp_path / "three", quiet=True)
    assert np.array_equal(np.load(file), logits)


def test_classes_in_another_order_are_put_in_ours(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder / "runs" / "small", other)
    record = json.loads((other / "run.json").read_text())
    record["data"]["features"]["classes"].reverse()
    (other / "run.json").write_text(json.dumps(record))
    bigctl.train(keys(folder), tmp_path / "a", quiet=True)
    first = np.load(kept(tmp_path / "a"))
    kept(tmp_path / "a").unlink()
    bigctl.train([*keys(folder), f"distil.teacher={other}"], tmp_path / "b", quiet=True)
    assert np.array_equal(np.load(kept(tmp_path / "b")), first[:, ::-1])
    record["data"]["features"]["classes"][0] = "huge"
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match="has other classes than the data: the data has 'small'"):
        bigctl.train([*keys(folder), f"distil.teacher={other}"], tmp_path / "c", quiet=True)


def test_a_teacher_that_cannot_teach_is_refused_in_a_line(folder, tmp_path, capsys):
    for name, changed in {
        "numbers": {"classes": None, "mean": [0.0], "std": [1.0]},
        "pictures": {"kind": "image"},
    }.items():
        shutil.copytree(folder / "runs" / "small", tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        record["data"]["features"] |= changed
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(folder / "runs" / "small", unfinished)
    (unfinished / "summary.json").unlink()
    for more, wrong in {
        f"distil.teacher={tmp_path / 'none'}": f"distil.teacher={tmp_path / 'none'}: there is no such run",
        f"distil.teacher={unfinished}": "has not finished training",
        f"distil.teacher={tmp_path / 'numbers'}": "a run of recipe=mlp_cls tells no class of an example",
        f"distil.teacher={tmp_path / 'pictures'}": "it reads images, the data holds tables",
        "data.split_seed=5": "it reads columns in another way than this data has them",
        "distil.alpha=2": "distil.alpha cannot be 2",
    }.items():
        assert main(["train", *keys(folder, more), "--run-dir", str(tmp_path / "new")]) == 2, more
        assert wrong in (told := capsys.readouterr().err) and "Traceback" not in told, told
        assert not (tmp_path / "new").exists() or not any((tmp_path / "new").iterdir()), more
    for name, wrong in {
        "none": "there is no such run",
        "numbers": "tells no class",
        "unfinished": "not finished",
    }.items():
        composed = compose(keys(folder, f"distil.teacher={tmp_path / name}"))
        with pytest.raises(BigctlError, match=wrong), open_run.opened(composed, tmp_path / "new", Options()):
            pytest.fail("the run began")
        assert not (tmp_path / "new").exists()
    assert main(["train", "recipe=bert_mlm", "distil.teacher=x", "--dry-run"]) == 2
    assert "recipe=bert_mlm cannot be taught by another run" in capsys.readouterr().err


def test_what_a_teacher_said_goes_with_the_data_and_only_the_cache_is_blamed_for_what_it_cannot_hold(
    folder, tmp_path, capsys
):
    bigctl.train(keys(folder, "train.steps=1"), tmp_path / "student", quiet=True)
    file = kept(tmp_path / "student")
    with pytest.raises(FileNotFoundError), distil._alone(file):  # another file is missing
        (tmp_path / "elsewhere").read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingFailed, match="cannot be stored"), distil._alone(tmp_path / "file" / "a.npy"):
        pytest.fail("it is no folder")
    given = [key for key in small.KEYS if key.startswith("data.")]
    assert main(["data", "csv", f"data.path={folder / 'rows.csv'}", *given, "--clean", "--json"]) == 0
    freed = json.loads(capsys.readouterr().out)
    assert not file.exists() and str(file.parent) in freed["removed"] and freed["freed_bytes"] > 0


@pytest.mark.slow
def test_a_reader_of_words_learns_from_a_reader_of_characters(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for number in range(90):
        mood = ("good", "bad")[number % 2]
        rows.append((" ".join([*rng.choice(["film", "plot", "cast"], rng.integers(1, 6)), mood]), mood))
    text = "".join(f"{words},{mood}\n" for words, mood in [("text", "mood"), *rows])
    (tmp_path / "texts.csv").write_text(text)
    given = ["recipe=lstm_cls", "data=csv", f"data.path={tmp_path / 'texts.csv'}", "data.text=text", "data.label=mood"]
    given += ["model.hidden=4", "model.embedding=4", "train.batch_size=16", "train.tensorboard=false"]
    characters = [*given, "recipe.tokenizer.type=characters", "train.steps=3"]
    bigctl.train(characters, tmp_path / "teacher", quiet=True)
    bigctl.train([*given, "train.steps=2", f"distil.teacher={tmp_path / 'teacher'}"], tmp_path / "student", quiet=True)
    teacher, student = bigctl.load(str(tmp_path / "teacher")), bigctl.load(str(tmp_path / "student"))
    logits = np.load(kept(tmp_path / "student"))
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    texts = [str(each) for each in student.data().texts["train"][0]]
    np.testing.assert_allclose(likely, teacher.predict(texts), atol=1e-5)
