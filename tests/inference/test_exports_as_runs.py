"""What `bigctl export` wrote is scored as its run is, in its own runtime, on the data of that run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

import bigctl as package
from bigctl.generation.options import GenerationOptions
from bigctl.inference import artefact, language_models
from bigctl.inference.exporters import sealed
from bigctl.inference.exporters.formats import exporter
from bigctl.inference.trained import TrainedRun
from bigctl.runs.exports import Export
from bigctl.serving import loading, naming
from bigctl.serving.predicting import Predicting
from bigctl.serving.settings import Settings
from tests import small
from tests.conftest import Cli
from tests.exported import digests, list_anew

pytestmark = [pytest.mark.fewer, pytest.mark.usefixtures("briefly")]
BRIEF = ["train.steps=4", "train.batch_size=8", "train.tensorboard=false"]
PREFIX = {"test": "test", "validation": "val"}
NEAR: dict[str, Any] = {"rel": 1e-4, "abs": 1e-5}


# ---------------------------------------------------------------------------------------------------------------- eval


def test_scores_of_an_export_are_those_of_its_run(exports: Cli) -> None:
    folder = exports.folder / "runs" / "small" / "jax"
    before = digests(folder)
    for split in ("test", "validation"):
        run = exports.json("eval", "small", "--split", split)
        found = exports.json("eval", "runs/small/jax", "--split", split, "--require", f"{PREFIX[split]}/loss>=0")
        assert found["metrics"] == pytest.approx(run["metrics"], **NEAR)
        assert found["confusion"] == run["confusion"] and found["classes"] == run["classes"]
        assert [each["origin"] for each in found["errors"]] == [each["origin"] for each in run["errors"]]
        assert found["format"] == "jax" and found["runtime"].startswith("jax ") and found["origin"]["same"]
    assert digests(folder) == before
    out = exports("eval", "small/jax").stdout
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
    list_anew(tmp_path / "net", weights.name)
    found = cli.json("eval", "net")
    assert found["run"] == "net" and "read by bigctl" in found["runtime"]
    assert found["metrics"]["test/loss"] == pytest.approx(math.log(10), rel=1e-5)  # of zeros


def test_folders_for_other_libraries_answer_as_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cli, picture = Cli(tmp_path), np.random.default_rng(0).integers(0, 255, (8, 8), np.uint8)
    Image.fromarray(picture).save("picture.png")
    keys = ["recipe=resnet_cls", "data=digits", "model.blocks=[1]", "model.width=4", "model.stem=imagenet"]
    cli("train", *keys, "recipe.augment.crop=0", "eval.tta=mirror", *BRIEF, "--name", "net")
    cli("export", "net", "--format", "hf")
    told = cli("predict", "net/hf", "picture.png").stderr
    assert "note: the run answers by the views of eval.tta=mirror, an export by each picture" in told
    assert "on the views of `eval.tta=mirror`" in (tmp_path / "runs" / "net" / "hf" / "README.md").read_text()
    for flags in ([], ["--embeddings"]):
        run, found = (
            json.loads(cli("predict", *asked, "picture.png", *flags).stdout)
            for asked in (["net", "--tta", "none"], ["net/hf"])
        )
        for name, value in run.items():
            assert found[name] == (value if isinstance(value, str) else pytest.approx(value, abs=1e-5)), name
    assert "bigctl predict, bigctl serve" in cli("info", "net/hf").stdout
    loaded, given = package.load_export("net/hf"), picture[None, :, :, None]
    np.testing.assert_allclose(loaded.predict(given), package.load("net", tta="none").predict(given), atol=1e-6)
    assert repr(loaded).startswith("<bigctl export (hf) runs/net/hf: resnet_cls, step 4; 10 classes")
    weights = tmp_path / "runs" / "net" / "hf" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    assert "model.safetensors: is damaged" in cli("predict", "net/hf", "picture.png", code=2).stderr


def test_exports_are_loaded_in_python(exports: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(exports.folder)
    run, found = package.load("small"), package.load_export("small/jax")
    scores = [{k: v for k, v in each.evaluate("validation").items() if k != "val/confusion"} for each in (run, found)]
    assert scores[1] == pytest.approx(scores[0], **NEAR)
    assert found.classes == run.classes
    assert naming.kind_of("small/jax") == "export" and naming.name_of("small/jax") == "small-jax"
    served = loading.load("m", "small/jax", Settings(), step="best", plugins=()).model
    assert isinstance(served, Predicting) and served.columns() == Predicting("m", run).columns()
    with pytest.raises(package.BigctlError, match="is a program in jax"):
        _ = found.params
    with pytest.raises(package.BigctlError, match="is a program in jax"):
        found.logits(np.zeros((1, 2)))
    with pytest.raises(package.BigctlError, match="writes no text"):
        found.generate("a")
    with pytest.raises(package.BigctlError, match="nothing is kept in an export"):
        found.choose_threshold()
    with pytest.raises(package.BigctlError, match=r"is no export \(`bigctl export RUN` writes an export; a run has"):
        package.load_export("small")
    with pytest.raises(package.BigctlError, match="there is no such folder"):
        package.load_export("smaller")
    with pytest.raises(package.BigctlError, match="the export is not encrypted"):
        package.load_export("small/jax", passphrase="five words drawn by dice")
    with pytest.raises(package.BigctlError, match="`bigctl.load_export` takes it"):
        package.load("small/jax")


def test_damage_is_told_where_no_model_is_asked(exports: Cli) -> None:
    folder = shutil.copytree(exports.folder / "elsewhere", exports.folder / "damaged")
    model = next(folder.glob("model.*"))
    model.write_bytes(model.read_bytes()[:100])
    for command in (["info", "damaged"], ["compare", "small", "damaged"]):
        assert f"{model.name} is damaged, cut short or missing" in exports(*command).stdout
    (folder / "SHA256SUMS").unlink()
    said = exports("predict", "damaged", "rows.csv", code=2).stderr
    assert said.startswith("bigctl: damaged/SHA256SUMS: cannot be read")


def test_an_export_is_scored_at_its_own_threshold(exports: Cli) -> None:
    run = exports.json("eval", "small", "--threshold", "0.8")
    assert exports.json("eval", "elsewhere")["metrics"] == pytest.approx(run["metrics"], **NEAR)
    plain = exports.json("eval", "small")["metrics"]
    assert exports.json("eval", "elsewhere", "--threshold", "none")["metrics"] == pytest.approx(plain, **NEAR)


def test_gates_and_intervals_are_those_of_a_run(exports: Cli) -> None:
    out = exports("eval", "elsewhere", "--require", "test/accuracy>=1.1", "--junit", "report.xml", code=4)
    assert "test/accuracy" in out.stderr and "<testcase" in (exports.folder / "report.xml").read_text()
    asked = ["--bootstrap", "20", "--slices", "class", "--slices", "place", "--min-slice", "2"]
    run, found = (exports.json("eval", name, *asked) for name in ("small", "elsewhere"))
    assert "test/accuracy" in found["intervals"] and [each["by"] for each in found["slices"]] == ["class", "place"]
    counted = [
        [[(each["name"], each["count"]) for each in by["slices"]] for by in told["slices"]] for told in (run, found)
    ]
    assert counted[0] == counted[1] and counted[0][1]
    assert not (exports.folder / "elsewhere" / "assessment.json").exists()


def test_slices_by_a_column_that_no_model_reads_are_those_of_the_run(tmp_path: Path) -> None:
    cli, data = Cli(tmp_path / "here"), tmp_path / "data"
    cli.folder.mkdir()
    data.mkdir()
    rows = small.columns()
    small.write(data / "rows.csv", {**rows, "who": [("ann", "bob")[n % 2] for n in range(len(rows["kind"]))]})
    keys = ["data=csv", "data.path=../data/rows.csv", "data.drop=[who]", "train.steps=4"]
    cli("train", *small.KEYS, *keys, "--name", "a")
    cli("export", "a", "--format", "jax", "--out", "../out")
    asked = ["--slices", "who", "--min-slice", "2"]
    run, found = (cli.json("eval", name, *asked)["slices"][0] for name in ("a", "../out"))
    counted = [[(each["name"], each["count"]) for each in told["slices"]] for told in (run, found)]
    assert counted[0] == counted[1] and {name for name, _ in counted[0]} == {"ann", "bob"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--step", "last"], ["--tta", "mirror"], ["--threshold", "f1"], ["--threshold", "kept.json"],
        ["--calibration"], ["--conformal", "0.9"], ["--ood", "iris"], ["--robust", "linf=0.1"],
        ["--passphrase-file", "x"],
    ],
)  # fmt: skip
def test_what_an_export_has_nothing_for_is_refused(exports: Cli, flags: list[str]) -> None:
    error = exports("eval", "elsewhere", *flags, code=2).stderr
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


def test_an_export_without_its_run_is_scored_where_its_data_is_and_only_there(exports: Cli) -> None:
    expected = exports.json("eval", "elsewhere")["metrics"]
    shutil.rmtree(exports.folder / "runs")
    error = exports("eval", "elsewhere", code=2).stderr
    assert "the run small that it was made from (step 30) is not at hand" in error
    assert "data.path=rows.csv, is not here" in error and "Traceback" not in error
    small.write(exports.folder / "rows.csv", small.columns())
    found = exports.json("eval", "elsewhere")
    assert found["metrics"] == expected and found["origin"]["run"] is None
    small.write(exports.folder / "rows.csv", small.columns(seed=1))
    assert "the data is not what the run was trained on" in exports("eval", "elsewhere", code=2).stderr


def test_the_run_can_be_named(exports: Cli) -> None:
    expected = exports.json("eval", "elsewhere")["metrics"]
    (exports.folder / "runs" / "small").rename(exports.folder / "moved")
    assert "--source RUN" in exports("eval", "elsewhere", code=2).stderr
    assert exports.json("eval", "elsewhere", "--source", "moved")["metrics"] == expected
    assert "there is no such run" in exports("eval", "elsewhere", "--source", "mooved", code=2).stderr


def test_data_of_a_run_that_was_trained_on_is_used_and_that_of_another_run_is_not(exports: Cli) -> None:
    run = exports.folder / "runs" / "small"
    (run / "checkpoints" / "000000030").rename(run / "checkpoints" / "000000040")
    out = exports("eval", "elsewhere").stdout
    assert "runs/small has no checkpoint of step 30 any more" in out and "it has 40" in out
    record = json.loads((run / "run.json").read_text())
    record["data"]["fingerprint"] = "0" * 64
    (run / "run.json").write_text(json.dumps(record))
    assert "is not here either" in exports("eval", "elsewhere", code=2).stderr


def test_a_damaged_export_is_not_scored(exports: Cli) -> None:
    file = exports.folder / "elsewhere" / "weights.npz"
    file.write_bytes(file.read_bytes()[:-1])
    assert "weights.npz: is damaged, cut short or missing" in exports("eval", "elsewhere", code=2).stderr


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


# ------------------------------------------------------------------------------------------------ read by bigctl itself


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TrainedRun:
    """A small Llama whose tokenizer GGUF has a place for."""
    folder = tmp_path_factory.mktemp("llama")
    (folder / "text.txt").write_text("to be or nothing, is a question\n" * 200)
    model = ["model=llama_tiny", "model.layers=1", "model.width=32", "model.heads=2", "model.kv_heads=1"]
    keys = ["recipe=gpt_lm", *model, "model.intermediate=32", "model.context=32", "recipe.block=32", "data=text"]
    keys += ["recipe.sample_tokens=0", "recipe.tokenizer.type=bpe", "recipe.tokenizer.size=280"]
    package.train([*keys, f"data.path={folder / 'text.txt'}", *BRIEF], folder / "run", quiet=True)
    return TrainedRun.load(str(folder / "run"))


@pytest.mark.parametrize("form", ["hf", "gguf", "jax"])
def test_an_encrypted_language_model_writes_as_the_open_one(llama: TrainedRun, tmp_path: Path, form: str) -> None:
    pytest.importorskip("cryptography")
    if form == "gguf":
        pytest.importorskip("gguf")
    exporter(form).write(llama, tmp_path / "open")
    sealed.seal(tmp_path / "open", tmp_path / "sealed", "five words drawn by dice")
    model = package.load_export(tmp_path / "sealed", passphrase="five words drawn by dice")
    written = model.generate("to be", max_new_tokens=8, temperature=0)
    there = language_models.load_language_model(str(tmp_path / "open"))
    assert written == there.generate(["to be"], GenerationOptions(max_new_tokens=8, temperature=0))
    assert written[0].tokens == 8 and str(tmp_path / "sealed") in model.language_model.name
    with pytest.raises(package.BigctlError, match="load the run instead"):
        model.randomised()
    file = next(file for file in (tmp_path / "open").iterdir() if file.suffix in (".safetensors", ".gguf", ".npz"))
    content = bytearray(file.read_bytes())
    content[-9] ^= 1
    file.write_bytes(content)
    with pytest.raises(package.BigctlError, match="is damaged"):
        language_models.load_language_model(str(tmp_path / "open"))


def test_exports_of_language_models_are_compared_without_a_test_in_pairs(llama: TrainedRun) -> None:
    if not (llama.run.path / "jax").is_dir():
        exporter("jax").write(llama, llama.run.path / "jax")
    told = Cli(llama.run.path.parent)("compare", "run", "run/jax").stdout
    assert "format" in told and "float32" in told and "--significance" not in told


def test_a_file_for_llama_cpp_is_scored_as_bigctl_reads_it(llama: TrainedRun) -> None:
    pytest.importorskip("gguf")
    exporter("gguf").write(llama, llama.run.path / "gguf")
    with artefact.opened(Export(llama.run.path / "gguf")) as found:
        assert found.runtime.endswith("read by bigctl")
        assert found.evaluate() == pytest.approx(llama.evaluate(), rel=5e-3)  # its matrices are float16
