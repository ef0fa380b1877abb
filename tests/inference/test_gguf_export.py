"""Promises of `bigctl export --format gguf`: one file that says what the run knows, or nothing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gguf
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.config import schema
from bigctl.errors import ConfigError, RunError
from bigctl.inference.exporters import gguf_model
from bigctl.interop import gguf_export, loading, sources
from bigctl.interop.gguf import StoredGguf
from bigctl.interop.llama2c import halves
from bigctl.models.architecture import decoder_architecture
from tests import small

pytestmark = pytest.mark.fewer

KEYS = ["recipe=gpt_lm", "model=llama_tiny", "data=text", "recipe.tokenizer.type=bpe", "recipe.tokenizer.size=290"]
KEYS += ["train.steps=4", "train.batch_size=4", "train.tensorboard=false", "model.layers=2", "model.width=32"]
KEYS += ["model.heads=4", "model.kv_heads=2", "model.intermediate=48", "model.context=16"]
KEYS += ["model.scan=true"]  # how a model is compiled changes nothing of what is stored
LLAMA = schema.Decoder(
    layers=2, width=32, heads=4, kv_heads=2, context=16, intermediate=48, position="rope", norm="rms",
    activation="swiglu", bias=False, tied=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("book")
    lines = [f"{n} cats sat on {n % 7} mats, and it's raining." for n in range(400)]
    (folder / "book.txt").write_text("\n".join(lines))
    bigctl.train([*KEYS, f"data.path={folder / 'book.txt'}"], folder / "run", quiet=True)
    return folder / "run"


def test_a_llama_leaves_as_one_file_with_its_tokenizer_and_can_be_started_from(run, tmp_path, capsys):
    assert main(["export", str(run), "--format", "gguf", "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rounded"]["matrices"] == {"F16": 15} and said["difference"] < 1e-6
    assert "run.py" not in said["files"] and "llama-cli" in (tmp_path / "out" / "README.md").read_text()
    trained, source = bigctl.load(str(run)), sources.locate_source(str(tmp_path / "out" / "model.gguf"))
    weights = gguf_model.Network.of(trained).weights
    taken, new, unused = loading.load_weights(source, {name: values.shape for name, values in weights.items()})
    assert not new and not unused
    for name, values in weights.items():
        rows = slice(None) if name != "token/embedding" else slice(290)
        np.testing.assert_allclose(taken[name][rows], values[rows], atol=1e-3, err_msg=name)
    metadata = StoredGguf(tmp_path / "out" / "model.gguf").metadata
    assert metadata["tokenizer.ggml.pre"] == "gpt-2" and metadata["tokenizer.ggml.add_bos_token"] is False
    end = metadata["tokenizer.ggml.tokens"][metadata["tokenizer.ggml.eos_token_id"]]
    assert end == "<|endoftext|>" and metadata["general.file_type"] == 1


@pytest.mark.parametrize(("flag", "kind"), [pytest.param("--int8", "Q8_0", marks=pytest.mark.slow), ("--int4", "Q4_0")])
def test_rounded_matrices_are_those_of_llama_cpp_and_rows_that_do_not_fit_are_counted(
    run, tmp_path, capsys, flag, kind
):
    assert main(["export", str(run), "--format", "gguf", flag, "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["rounded"]
    assert said["matrices"] == {kind: 13, "F16": 2} and said["after"] < said["before"] / 2  # rows of 48 in `down`
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert kinds["blk.0.attn_q.weight"] == kind and kinds["blk.1.ffn_down.weight"] == "F16"
    assert kinds["output_norm.weight"] == "F32" and abs(said["after_score"] - said["before_score"]) < 0.05


@pytest.mark.slow
def test_a_tokenizer_or_a_layout_that_came_out_otherwise_is_noticed(run, tmp_path, monkeypatch):
    trained = bigctl.load(str(run))
    monkeypatch.setattr(gguf_export, "neighbours", lambda rows, depth: rows)
    with pytest.raises(RunError, match=r"model\.gguf: does not compute what the model does"):
        gguf_model.write(trained, tmp_path / "out")
    monkeypatch.undo()
    monkeypatch.setattr(gguf_export, "split_of", lambda tokenizer, where: "llama-bpe")
    with pytest.raises(RunError, match="the tokenizer cuts .* otherwise than the run's"):
        gguf_model.write(trained, tmp_path / "out")
    assert not [*tmp_path.iterdir()]


def test_turning_pairs_into_neighbours_is_undone_by_the_reader():
    rows = np.arange(24.0).reshape(12, 2)
    assert np.array_equal(halves(gguf_export.neighbours(rows, 6), 6), rows)


def test_what_llama_cpp_has_no_place_for_is_refused_in_one_line(tmp_path, tmp_path_factory, capsys):
    table = str(small.trained(tmp_path_factory) / "runs" / "small")
    assert main(["export", table, "--format", "gguf", "--out", str(tmp_path / "out")]) == 2
    assert "llama.cpp has no place for recipe=mlp_cls model=mlp" in capsys.readouterr().err
    model = decoder_architecture(LLAMA, 300)
    assert gguf_export.model_kind(model, "run") == "llama"
    gpt = dataclasses.replace(model, position="learned", norm="layer", kv_heads=4, bias=True, activation="gelu")
    for changed, said in [
        (gpt, "no GPT-2 with activation=gelu"),
        (dataclasses.replace(model, qk_norm=True), "llama.cpp has no class for a decoder with .*qk_norm"),
        (dataclasses.replace(model, bias=True), "no Llama with biases"),
    ]:
        with pytest.raises(ConfigError, match=said):
            gguf_export.model_kind(changed, "run")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"type": "WordLevel", "vocab": {}}}, "byte-level BPE with merges alone"),
        ({"normalizer": {"type": "Lowercase"}}, "changes its text first"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "no name for how this tokenizer cuts"),
        ({"pre_tokenizer": None}, "byte-level BPE"),
    ],
)
def test_tokenizers_that_gguf_has_no_place_for_are_refused(changes, said):
    plain = {
        "model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    }
    assert gguf_export.split_of(plain, "run") == "gpt-2"
    digits = {"type": "Digits", "individual_digits": True}
    both = {"type": "Sequence", "pretokenizers": [digits, plain["pre_tokenizer"]]}
    assert gguf_export.split_of({**plain, "pre_tokenizer": both}, "run") == "smollm"
    with pytest.raises(ConfigError, match=said):
        gguf_export.split_of({**plain, **changes}, "run")
