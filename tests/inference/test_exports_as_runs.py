"""What `bigctl export` wrote is used as its run is: it is verified, scored and compared, and stays as it was."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bigctl as package
from bigctl.files import sha256
from bigctl.inference import artefact
from bigctl.inference.exporters.formats import exporter
from bigctl.inference.trained import TrainedRun
from bigctl.runs.directory import SEALED, SETTINGS, SOURCE, SUMS
from bigctl.runs.exports import Export
from tests import small
from tests.conftest import Cli

pytestmark = [pytest.mark.fewer, pytest.mark.usefixtures("briefly")]
BRIEF = ["train.steps=4", "train.batch_size=8", "train.tensorboard=false"]
PREFIX = {"test": "test", "validation": "val"}
NEAR: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5}


def digests(folder: Path) -> dict[str, str]:
    return {file.name: sha256(file) for file in folder.iterdir()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `runs/small`, on a table, its export `runs/small/jax`, and `elsewhere`, the same with a
    threshold."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(small.trained(tmp_path_factory) / "runs", folder / "runs")
    trained = TrainedRun.load(str(folder / "runs" / "small"))
    exporter("jax").write(trained, folder / "runs" / "small" / "jax")
    exporter("jax").write(trained.with_threshold(0.8), folder / "elsewhere")
    return folder


@pytest.fixture
def cli(made: Path, tmp_path: Path) -> Cli:
    """The command in a copy of that folder."""
    return Cli(Path(shutil.copytree(made, tmp_path / "copy")))


def rewrite(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a JSON file of an export, and its digest."""
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    lines = [line for line in (folder / SUMS).read_text().splitlines() if not line.endswith(f"  {name}")]
    (folder / SUMS).write_text("\n".join([*lines, f"{sha256(folder / name)}  {name}"]) + "\n")


# ---------------------------------------------------------------------------------------------------------------- eval


def test_scores_of_an_export_are_those_of_its_run(cli: Cli) -> None:
    folder = cli.folder / "runs" / "small" / "jax"
    before = digests(folder)
    for split in ("test", "validation"):
        run = cli.json("eval", "small", "--split", split)
        found = cli.json("eval", "runs/small/jax", "--split", split, "--require", f"{PREFIX[split]}/loss>=0")
        assert found["metrics"] == pytest.approx(run["metrics"], **NEAR)
        assert found["confusion"] == run["confusion"] and found["classes"] == run["classes"]
        assert [each["origin"] for each in found["errors"]] == [each["origin"] for each in run["errors"]]
        assert found["format"] == "jax" and found["runtime"].startswith("jax ") and found["origin"]["same"]
    assert digests(folder) == before
    out = cli("eval", "small/jax").stdout
    assert "jax, float32, computed by jax" in out and "made from runs/small, step 30" in out
    assert "bigctl compare runs/small runs/small/jax --significance" in out


def test_a_folder_that_is_called_as_a_run_is_scored_by_its_own_weights(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    keys = ["recipe=resnet_cls", "data=digits", "model.blocks=[1]", "model.width=4", "model.stem=imagenet"]
    cli("train", *keys, "recipe.augment.crop=0", *BRIEF, "--name", "net")
    cli("export", "net", "--format", "hf", "--out", "net")
    weights = tmp_path / "net" / "model.safetensors"
    tensors = load_file(weights)
    save_file({name: np.zeros_like(values) for name, values in tensors.items()}, weights)
    lines = (tmp_path / "net" / SUMS).read_text().splitlines()
    kept = [line for line in lines if not line.endswith(weights.name)]
    (tmp_path / "net" / SUMS).write_text("\n".join([*kept, f"{sha256(weights)}  {weights.name}"]) + "\n")
    found = cli.json("eval", "net")
    assert found["run"] == "net" and "read by bigctl" in found["runtime"]
    assert found["metrics"]["test/loss"] == pytest.approx(math.log(10), rel=1e-5)  # of zeros


def test_an_export_is_scored_at_its_own_threshold(cli: Cli) -> None:
    run = cli.json("eval", "small", "--threshold", "0.8")
    assert cli.json("eval", "elsewhere")["metrics"] == pytest.approx(run["metrics"], **NEAR)
    plain = cli.json("eval", "small")["metrics"]
    assert cli.json("eval", "elsewhere", "--threshold", "none")["metrics"] == pytest.approx(plain, **NEAR)


def test_gates_and_intervals_are_those_of_a_run(cli: Cli) -> None:
    out = cli("eval", "elsewhere", "--require", "test/accuracy>=1.1", "--junit", "report.xml", code=4)
    assert "test/accuracy" in out.stderr and "<testcase" in (cli.folder / "report.xml").read_text()
    found = cli.json("eval", "elsewhere", "--bootstrap", "20", "--slices", "class", "--min-slice", "2")
    assert "test/accuracy" in found["intervals"] and found["slices"][0]["by"] == "class"
    assert not (cli.folder / "elsewhere" / "assessment.json").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--step", "last"], ["--tta", "mirror"], ["--threshold", "f1"], ["--threshold", "kept.json"],
        ["--calibration"], ["--conformal", "0.9"], ["--ood", "iris"], ["--robust", "linf=0.1"], ["--slices", "place"],
        ["--passphrase-file", "x"],
    ],
)  # fmt: skip
def test_what_an_export_has_nothing_for_is_refused(cli: Cli, flags: list[str]) -> None:
    error = cli("eval", "elsewhere", *flags, code=2).stderr
    assert error.startswith(f"bigctl: {flags[0]}: ") and len(error.splitlines()) == 2


KINDS = {
    "a number": ["recipe=mlp_cls", "model.hidden=[8]", "model.head=regression", "data.label=size", "data=csv"],
    "pictures": ["recipe=cnn_cls", "data=digits", "model.channels=[4]"],
    "several classes": ["recipe=lstm_cls", "model=lstm", "model.hidden=8", "model.embedding=8", "data=csv",
                        "data.text=place", "data.labels=kind"],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("format", ["jax", "onnx"])
def test_any_kind_of_target_is_scored_in_either_runtime(kind: str, format: str, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
        pytest.importorskip("onnxruntime")
    rows = small.columns()
    if kind == "several classes":
        rows = {"place": rows["place"], "kind": [";".join(["a", "b"][: n % 3]) for n in range(len(rows["place"]))]}
    small.write(tmp_path / "rows.csv", rows)
    where = [f"data.path={tmp_path / 'rows.csv'}"] if "data=csv" in KINDS[kind] else []
    package.train([*KINDS[kind], *where, *BRIEF], tmp_path / "run", quiet=True)
    require_same_scores(tmp_path / "run", tmp_path / "export", format)


def require_same_scores(run: Path, folder: Path, format: str, **options: Any) -> None:
    trained = TrainedRun.load(str(run))
    exporter(format).write(trained, folder, **options)
    with artefact.opened(Export(folder, given=trained.run)) as exported:
        for split in ("test", "validation"):
            expected, found = trained.score(split, errors=5), exported.score(split, errors=5)
            for name in [name for name in expected.metrics if name.endswith("/confusion")]:
                assert found.metrics.pop(name) == expected.metrics.pop(name)
            assert found.metrics == pytest.approx(expected.metrics, nan_ok=True, **NEAR)
            assert [each["row"] for each in found.errors] == [each["row"] for each in expected.errors]


@pytest.mark.slow
def test_words_are_tagged_as_the_run_does(tmp_path: Path) -> None:
    lines = [f"{word}\t{'B-FOOD' if word in ('soup', 'salt') else 'O'}" for word in ("soup", "moon", "salt", "river")]
    (tmp_path / "tags.conll").write_text("\n\n".join("\n".join(lines[n % 3 :]) for n in range(60)) + "\n")
    keys = [
        "recipe=bert_tag",
        "recipe.tokenizer.type=words",
        *TINY,
        "data=conll",
        f"data.path={tmp_path / 'tags.conll'}",
    ]
    package.train([*keys, *BRIEF], tmp_path / "run", quiet=True)
    require_same_scores(tmp_path / "run", tmp_path / "export", "jax")


def test_perplexity_is_that_of_the_run(writer_run: Path, tmp_path: Path) -> None:
    require_same_scores(writer_run, tmp_path / "writer", "jax")


@pytest.mark.parametrize("options", [{}, {"cache": True}])
def test_perplexity_in_onnxruntime_is_that_of_the_run(writer_run: Path, tmp_path: Path, options: Any) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    require_same_scores(writer_run, tmp_path / "writer", "onnx", **options)


def texts(folder: Path) -> list[str]:
    """Keys of data whose texts are of many lengths."""
    words = ["soup", "moon", "salt", "butter", "thunder", "river", "stone"]
    rows = [{"text": " ".join(words[n % 7 : n % 7 + 1 + n % 5]), "label": "ab"[n % 2]} for n in range(80)]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["data=jsonl", f"data.path={folder / 'texts.jsonl'}", "data.text=text", "data.label=null"]


TINY = ["model=bert_tiny", "model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=32"]


@pytest.mark.slow
def test_masked_tokens_are_guessed_as_the_run_does(tmp_path: Path) -> None:
    package.train(["recipe=bert_mlm", *TINY, *texts(tmp_path), *BRIEF], tmp_path / "run", quiet=True)
    require_same_scores(tmp_path / "run", tmp_path / "export", "jax")


@pytest.mark.slow
def test_packed_documents_are_scored_each_by_itself(tmp_path: Path) -> None:
    model = ["model=gpt_nano", "model.layers=1", "model.width=16", "model.heads=2", "model.context=32"]
    keys = ["recipe=gpt_lm", "recipe.packing=documents", "recipe.block=32", "recipe.sample_tokens=0"]
    keys += ["recipe.tokenizer.type=characters"]
    package.train([*keys, *model, *texts(tmp_path), *BRIEF], tmp_path / "run", quiet=True)
    require_same_scores(tmp_path / "run", tmp_path / "export", "jax")


# ---------------------------------------------------------------------------------------------------- the run, the data


def test_an_export_without_its_run_is_scored_where_its_data_is_and_only_there(cli: Cli) -> None:
    expected = cli.json("eval", "elsewhere")["metrics"]
    shutil.rmtree(cli.folder / "runs")
    error = cli("eval", "elsewhere", code=2).stderr
    assert "the run small that it was made from (step 30) is not at hand" in error
    assert "data.path=rows.csv, is not here" in error and "Traceback" not in error
    small.write(cli.folder / "rows.csv", small.columns())
    found = cli.json("eval", "elsewhere")
    assert found["metrics"] == expected and found["origin"]["run"] is None
    small.write(cli.folder / "rows.csv", small.columns(seed=1))
    assert "the data is not what the run was trained on" in cli("eval", "elsewhere", code=2).stderr


def test_the_run_can_be_named(cli: Cli) -> None:
    expected = cli.json("eval", "elsewhere")["metrics"]
    (cli.folder / "runs" / "small").rename(cli.folder / "moved")
    assert "--source RUN" in cli("eval", "elsewhere", code=2).stderr
    assert cli.json("eval", "elsewhere", "--source", "moved")["metrics"] == expected
    assert "there is no such run" in cli("eval", "elsewhere", "--source", "mooved", code=2).stderr


def test_data_of_a_run_that_was_trained_on_is_used_and_that_of_another_run_is_not(cli: Cli) -> None:
    run = cli.folder / "runs" / "small"
    (run / "checkpoints" / "000000030").rename(run / "checkpoints" / "000000040")
    out = cli("eval", "elsewhere").stdout
    assert "runs/small has no checkpoint of step 30 any more" in out and "it has 40" in out
    record = json.loads((run / "run.json").read_text())
    record["data"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    assert "is not here either" in cli("eval", "elsewhere", code=2).stderr


def test_a_damaged_export_is_not_scored(cli: Cli) -> None:
    file = cli.folder / "elsewhere" / "weights.npz"
    file.write_bytes(file.read_bytes()[:-1])
    assert "weights.npz: is damaged, cut short or missing" in cli("eval", "elsewhere", code=2).stderr


def test_a_task_that_changes_its_evaluation_says_how_exports_are_scored() -> None:
    from bigctl.recipes.mlp_cls import MlpCls

    from bigctl.training.task import Task, scores_exports

    class Changed(MlpCls):
        def evaluate(self, model: Any, batch: Any) -> Any:
            return super().evaluate(model, batch)

    class Told(Changed):
        def evaluate_exported(self, model: Any, batch: Any) -> Any:
            return super().evaluate_exported(model, batch)

    def answer(kind: type[Task]) -> bool:
        return scores_exports(kind.__new__(kind))

    assert answer(MlpCls) and not answer(Changed) and answer(Told)


# -------------------------------------------------------------------------------------------------------------- verify


def test_an_export_as_it_was_written_is_well_beside_its_run(cli: Cli) -> None:
    found = cli.json("verify", "small", "small/jax", "elsewhere")
    assert found["ok"] and [each["run"] for each in found["runs"]] == ["runs/small", "runs/small/jax", "elsewhere"]
    assert found["runs"][1]["files"] == 7 and found["runs"][1]["origin"]["same"]
    assert "made from runs/small, step 30, which is as it was" in cli("verify", "elsewhere").stdout


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "model.jax": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "labels.json": lambda path: path.unlink(),
    SOURCE: lambda path: path.write_text("{}"),
    SETTINGS: lambda path: path.write_text("{"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_named(cli: Cli, name: str) -> None:
    DAMAGE[name](cli.folder / "elsewhere" / name)
    out = cli("verify", "elsewhere", code=1).stdout
    assert f"DAMAGED elsewhere/{name}" in out


def test_lists_that_are_none_are_damage(cli: Cli) -> None:
    folder = cli.folder / "elsewhere"
    whole = (folder / SUMS).read_text()
    for text, said in (
        (whole.replace("  ", " "), "is no list of digests"),
        (whole.replace("  model.jax", "  ../model.jax"), "is no list of digests"),
        (whole.replace("  model.jax", "  model\0.jax"), "is no list of digests"),
        ("".join(line for line in whole.splitlines(keepends=True) if "model.jax" not in line), "not list model.jax"),
    ):
        (folder / SUMS).write_text(text)
        assert said in cli("verify", "elsewhere", code=1).stdout
    (folder / SUMS).unlink()
    assert "SHA256SUMS cannot be read" in cli("verify", "elsewhere", code=1).stdout


def test_pipes_and_links_are_no_files_of_an_export(cli: Cli) -> None:
    folder = cli.folder / "elsewhere"
    (folder / "labels.json").unlink()
    os.mkfifo(folder / "labels.json")
    assert "elsewhere/labels.json cannot be read: it is no regular file" in cli("verify", "elsewhere", code=1).stdout
    assert "labels.json: is damaged" in cli("eval", "elsewhere", code=2).stderr
    (folder / "labels.json").unlink()
    (folder / "labels.json").symlink_to("/dev/zero")
    assert "elsewhere/labels.json cannot be read: it is a link" in cli("verify", "elsewhere", code=1).stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": "model: 3"},
        {"features": {"kind": "table", "classes": 5}},
        {"features": {"tokenizer": "x"}},
        {"data": 3},
    ],
)
@pytest.mark.parametrize("command", [["info"], ["compare", "small"], ["report"]])
def test_settings_that_are_of_another_form_are_told_in_lines(
    cli: Cli, wrong: dict[str, Any], command: list[str]
) -> None:
    rewrite(cli.folder / "elsewhere", SETTINGS, lambda values: values.update(wrong))
    done = cli(*command, "elsewhere", code=None)
    assert "Traceback" not in done.stdout + done.stderr and "internal" not in done.stderr


@pytest.mark.parametrize("wrong", [{"derived_from": 3}, {"step": -1}, {"checkpoint": {"manifest-0.json": "x"}}])
def test_a_source_of_another_form_is_damage(cli: Cli, wrong: dict[str, Any]) -> None:
    rewrite(cli.folder / "elsewhere", SOURCE, lambda values: values.update(wrong))
    out = cli("verify", "elsewhere", code=1).stdout
    assert f"DAMAGED elsewhere/{SOURCE}" in out


def test_what_became_of_the_run_is_told_and_no_damage(cli: Cli) -> None:
    run = cli.folder / "runs" / "small"
    (cli.folder / "elsewhere" / "notes.txt").write_text("the good one")
    manifest = run / "checkpoints" / "000000030" / "manifest-0.json"
    manifest.write_text(manifest.read_text() + " ")
    out = cli("verify", "elsewhere").stdout
    assert "notes.txt does not belong to the export" in out and "is another one than this was made from" in out
    run.rename(cli.folder / "kept")
    assert "is not at hand" in cli("verify", "elsewhere").stdout
    assert "is not at hand" not in cli("verify", "elsewhere", "--source", str(cli.folder / "kept")).stdout


# -------------------------------------------------------------------------------------------------------------- sealed


def test_an_encrypted_export_is_checked_and_scored_with_its_passphrase(cli: Cli) -> None:
    pytest.importorskip("cryptography")
    (cli.folder / "secret").write_text("correct horse battery\n")
    (cli.folder / "secret").chmod(0o600)
    key = ("--passphrase-file", "secret")
    cli("export", "small", "--format", "jax", "--encrypt", *key, "--out", "sealed")
    assert "can be checked with the passphrase alone" in cli("verify", "sealed").stdout
    assert "made from runs/small" in cli("verify", "sealed", "small", *key).stdout
    expected = cli.json("eval", "small")["metrics"]
    found = cli.json("eval", "sealed", *key)
    assert found["metrics"] == pytest.approx(expected, **NEAR) and found["format"] == "jax"
    out = cli("eval", "sealed", *key, "--errors", "0").stdout
    assert "bigctl predict sealed FILE.csv --passphrase-file FILE" in out and "made from runs/small" in out
    assert "there is no passphrase" in cli("eval", "sealed", code=2).stderr
    table = cli("compare", "small", "sealed", *key).stdout
    assert "made from" in table and "bigctl-clear" not in table
    (cli.folder / "secret").write_text("another passphrase\n")
    assert "the passphrase is wrong" in cli("verify", "sealed", *key, code=2).stderr
    file = cli.folder / "sealed" / SEALED
    file.write_bytes(file.read_bytes()[:1000])
    assert "is cut short" in cli("verify", "sealed", code=1).stdout
    file.write_bytes(b"?" * 30000)
    assert "is no encrypted export" in cli("verify", "sealed", code=1).stdout


# ------------------------------------------------------------------------------------------------------------- compare


def test_an_export_stands_beside_its_run(cli: Cli) -> None:
    found = cli.json("compare", "small", "small/jax", "elsewhere")
    run, first, _ = found["runs"]
    assert first["status"] == "export" and first["model"]["format"] == "jax" and run["model"]["format"] == "run"
    assert not found["config"] and "data" not in found["surroundings"]
    out = cli("compare", "small", "small/jax").stdout
    assert "configuration: no difference" in out and "--significance" in out
    error = cli("compare", "small", "small/jax", "--assert-equal", code=2).stderr
    assert "has no metrics to compare" in error
    assert "is named twice" in cli("compare", "elsewhere", "elsewhere/", code=2).stderr


def test_paired_tests_of_an_export_and_its_run_find_no_difference(cli: Cli) -> None:
    found = cli.json("compare", "small", "small/jax", "--significance", "--rounds", "100")
    assert found["mcnemar"]["p"] == 1.0 and set(found["exports"]) == {"runs/small/jax"}
    assert all(math.isclose(each["first"], each["second"], rel_tol=1e-4) for each in found["metrics"])
    assert "small/jax beside" in cli("compare", "elsewhere", "small/jax", "--significance", "--rounds", "100").stdout


# -------------------------------------------------------------------------------------------------------- report, info


def test_a_page_of_an_export_lies_beside_it(cli: Cli) -> None:
    before = digests(cli.folder / "elsewhere")
    assert cli("report", "elsewhere").stdout == "elsewhere-report.html\n"
    page = (cli.folder / "elsewhere-report.html").read_text()
    for said in ("made from runs/small, step 30", "Scores of the test split", "weights.npz", "Compared with the run"):
        assert said in page
    assert digests(cli.folder / "elsewhere") == before
    assert "an export has no curves" in cli("report", "elsewhere", "--png", code=2).stderr
    shutil.rmtree(cli.folder / "runs")
    (cli.folder / "elsewhere" / "labels.json").unlink()
    cli("report", "elsewhere", "--out", "page.html")
    page = (cli.folder / "page.html").read_text()
    assert "labels.json is missing" in page and "its scores are not known" in page


def test_what_is_known_of_an_export_is_told(cli: Cli) -> None:
    known = cli.json("info", "elsewhere")
    assert (known["format"], known["recipe"], known["classes"]) == ("jax", "mlp_cls", ["large", "small"])
    out = cli("info", "small/jax").stdout
    assert "an export, jax, weights float32" in out and "taken by     bigctl predict, bigctl serve, bigctl eval" in out
    (cli.folder / "elsewhere" / SETTINGS).write_text("{")
    (cli.folder / "elsewhere" / SOURCE).unlink()
    out = cli("info", "elsewhere").stdout
    assert out.count("note: ") == 2 and "is missing" in out


def test_a_page_beside_an_export_goes_with_its_run(cli: Cli) -> None:
    cli("report", "small/jax")
    assert (cli.folder / "runs" / "small" / "jax-report.html").is_file()
    cli("runs", "rm", "small", "--yes")
    assert not (cli.folder / "runs" / "small").exists()


# ------------------------------------------------------------------------------------------------ read by bigctl itself


def test_a_file_for_llama_cpp_is_scored_as_bigctl_reads_it(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "text.txt").write_text("to be or nothing, is a question\n" * 200)
    model = ["model=llama_tiny", "model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=1"]
    keys = ["recipe=gpt_lm", *model, "model.intermediate=32", "model.context=32", "recipe.block=32", "data=text"]
    keys += [
        "recipe.sample_tokens=0",
        "recipe.tokenizer.type=bpe",
        "recipe.tokenizer.size=280",
        f"data.path={tmp_path / 'text.txt'}",
    ]
    package.train([*keys, *BRIEF], tmp_path / "run", quiet=True)
    trained = TrainedRun.load(str(tmp_path / "run"))
    exporter("gguf").write(trained, tmp_path / "run" / "gguf")
    with artefact.opened(Export(tmp_path / "run" / "gguf")) as found:
        assert found.runtime.endswith("read by bigctl")
        assert found.evaluate() == pytest.approx(trained.evaluate(), rel=5e-3)  # its matrices are float16
