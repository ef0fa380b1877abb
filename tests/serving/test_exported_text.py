"""Exports of language models: what writes as its run does is served, what does not is refused with what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx

from bigctl.errors import BigctlError, RunError
from bigctl.files import sha256
from bigctl.generation.generate import LanguageModel
from bigctl.generation.options import GenerationOptions
from bigctl.generation.slots import Slots, memory_of
from bigctl.inference import exported_text
from bigctl.inference.exporters import gguf_model
from bigctl.inference.exporters.formats import exporter
from bigctl.inference.trained import TrainedRun
from bigctl.serving import llama_cpp, loading, naming
from bigctl.serving.settings import Settings
from bigctl.serving.writing import Writing
from tests.conftest import Cli

pytest.importorskip("starlette")
pytestmark = pytest.mark.fewer
CHAT = [{"role": "user", "content": "to be"}]


@pytest.fixture(scope="module")
def run(writer_run: Path) -> TrainedRun:
    return TrainedRun.load(str(writer_run))


@pytest.fixture(scope="module")
def exported(run: TrainedRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "writer-jax"
    exporter("jax").write(run, folder)
    return folder


def loaded(given: Path | str) -> Any:
    return loading.load(naming.name_of(str(given)), str(given), Settings(), step="best", plugins=()).model


def written(model: LanguageModel) -> list[str]:
    options = GenerationOptions(max_new_tokens=40, temperature=1.0, seed=2, num_samples=3)
    return [found.text for found in model.generate(["to be", CHAT], options)]


def test_jax_and_hugging_face_write_what_the_run_writes(run: TrainedRun, exported: Path, tmp_path: Path) -> None:
    exporter("hf").write(run, tmp_path / "writer-hf")
    expected = written(run.language_model)
    for folder in (exported, tmp_path / "writer-hf"):
        found = loaded(folder)
        assert isinstance(found, Writing) and found.name == folder.name
        assert written(found.model) == expected and found.model.end == run.language_model.end
    assert loaded(exported).model.step == run.step


def test_generate_writes_with_an_export_what_the_run_writes(run: TrainedRun, exported: Path, bigctl: Cli) -> None:
    asked = ("--prompt", "to be", "--temperature", "1", "--seed", "3", "--max-new-tokens", "12")
    exporter("hf").write(run, bigctl.folder / "runs" / "writer" / "hf")
    shutil.copytree(exported, bigctl.folder / "runs" / "jax-of-it")
    expected = bigctl.json("generate", str(run.run.path), *asked)["samples"]
    assert expected
    for given in (str(exported), "writer/hf", "jax-of-it"):
        assert bigctl.json("generate", given, *asked)["samples"] == expected, given
        assert "an export holds one step" in bigctl("generate", given, "--prompt", "a", "--step", "3", code=2).stderr
    told = bigctl("info", str(exported)).stdout
    assert "bigctl generate, bigctl serve" in told and "bigctl predict" not in told


def test_the_weights_of_an_export_are_served_as_they_are(exported: Path) -> None:
    """Also of a run that was fine-tuned for integers: its `model.jax` rounds nothing."""
    kept = json.loads((exported / "bigctl.json").read_text())
    assert "quantize: null" in kept["config"]
    kept["config"] = (
        kept["config"].replace("quantize: null", "quantize: int8").replace("init_from: null", "init_from: x")
    )
    model = exported_text.read(exported, kept, hint="").model
    with np.load(exported / "weights.npz") as stored:
        for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
            assert np.array_equal(np.asarray(leaf[...]), stored["/".join(map(str, path))])


def with_digests(folder: Path) -> None:
    listed = sorted(file for file in folder.iterdir() if file.name != "SHA256SUMS")
    (folder / "SHA256SUMS").write_text("".join(f"{sha256(file)}  {file.name}\n" for file in listed))


def test_what_is_not_served_is_refused_with_what_to_do(exported: Path, tmp_path: Path, bigctl: Cli) -> None:
    folder = tmp_path / "writer-onnx"
    shutil.copytree(exported, folder)
    (folder / "model.jax").rename(folder / "model.onnx")
    with_digests(folder)
    with pytest.raises(RunError, match="as ONNX") as refused:
        loaded(folder)
    assert "--format jax or hf" in str(refused.value.hint)
    others = tmp_path / "others"  # weights that are no export
    others.mkdir()
    (folder / "model.onnx").rename(others / "model.gguf")
    for given in (others, others / "model.gguf"):
        with pytest.raises(RunError, match="llama.cpp's own format") as refused:
            loaded(given)
        assert refused.value.hint == f"llama-server -m {others / 'model.gguf'} --port 8000; or serve the run"
    said = bigctl("serve", str(others), "--port", "0", code=2).stderr
    assert "llama-server -m" in said and "Traceback" not in said


def test_weights_that_are_cut_short_or_another_models_are_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "writer"
    shutil.copytree(exported, folder)
    whole = (folder / "weights.npz").read_bytes()
    (folder / "weights.npz").write_bytes(whole[:-100])
    with pytest.raises(RunError, match="damaged, cut short or missing"):
        loaded(folder)
    (folder / "weights.npz").write_bytes(whole)
    with np.load(folder / "weights.npz") as stored:
        kept = dict(stored)
    first = next(name for name, values in kept.items() if values.ndim == 2)
    np.savez(folder / "weights.npz", **{**kept, first: kept[first][:-1]})
    with_digests(folder)
    with pytest.raises(RunError, match=f"does not hold {first}"):
        loaded(folder)


def test_texts_that_have_no_room_are_refused_before_they_end_the_process(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = run.language_model.model
    slots = Slots(model, 8)
    assert memory_of(model, 8) == sum(leaf.nbytes for leaf in jax.tree.leaves(slots.cache))
    monkeypatch.setattr(loading.memory, "available", lambda: memory_of(model, 4))
    with pytest.raises(RunError, match="8 texts at once take") as refused:
        loading._writing("writer", run.language_model, Settings(slots=8))
    assert refused.value.hint == "--slots 4"
    assert loading._writing("writer", run.language_model, Settings(slots=4)).name == "writer"
    monkeypatch.setattr(loading.memory, "available", lambda: 0)
    with pytest.raises(RunError, match="8 texts") as refused:
        loading._writing("writer", run.language_model, Settings(slots=8))
    assert "compress" in str(refused.value.hint)


def test_folders_that_hold_no_language_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{")
    with pytest.raises(BigctlError):
        loaded(tmp_path / "bert")
    with pytest.raises(RunError, match="no such run"):
        naming.name_of("smollm3")


def test_where_llama_cpp_is_faster_it_is_said_with_the_command(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    llama_cpp.offer("small", run.language_model, "COMMAND")
    assert not capsys.readouterr().err
    monkeypatch.setattr(llama_cpp, "LARGE", 0)
    llama_cpp.offer_run("small", run)  # whose tokenizer has no place in GGUF
    assert not capsys.readouterr().err
    monkeypatch.setattr(gguf_model, "require", lambda trained: None)
    llama_cpp.offer_run("small", run)
    said = capsys.readouterr().err
    assert f"bigctl export {run.run.path} --format gguf" in said and "llama-server -m" in said
