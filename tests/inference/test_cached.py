"""Promises of `bigctl export --cache`: the ONNX model that takes keys and values writes what `bigctl generate` does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import RunError
from bigctl.files import sha256
from tests import small

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bigctl.inference.exporters import cached
from bigctl.inference.exporters.onnx_session import Loaded
from bigctl.runs.removal import strangers
from tests.inference.test_exporters import run_py

pytestmark = [pytest.mark.usefixtures("briefly"), pytest.mark.fewer]
KEYS = ["recipe=gpt_lm", "data=text", "recipe.tokenizer.type=characters", "train.steps=20", "train.batch_size=4"]
KEYS += ["train.tensorboard=false", "model.layers=2", "model.width=32", "model.heads=4", "model.context=80"]
MODELS = {"llama": ["model=llama_tiny", "model.kv_heads=2", "model.intermediate=48"], "gpt": ["model=gpt_nano"]}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    words = np.random.default_rng(0).choice(["the cat", "sat on", "a mat", "and saw", "that dog", "run"], 6000)
    file = tmp_path_factory.mktemp("cached") / "text.txt"
    file.write_text("\n".join(" ".join(words[n : n + 9]) for n in range(0, 6000, 9)))
    return file


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt", marks=pytest.mark.slow)])
def run(request, text) -> Path:
    folder = text.with_name(request.param)
    bigctl.train([*KEYS, *MODELS[request.param], f"data.path={text}"], folder, quiet=True)
    return folder


def test_it_writes_what_generate_does_also_past_the_context(run, tmp_path, capsys):
    out = run / "onnx-cache"
    assert main(["export", str(run), "--format", "onnx", "--cache", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not [*strangers(run)]
    assert said["text"].startswith("the same 64 tokens as `bigctl generate") and said["difference"] < 1e-5
    (expected,) = bigctl.load(str(run)).generate(["the cat"], max_new_tokens=120, temperature=0)
    assert run_py(out, "the cat", "120").rstrip("\n") == ("the cat" + expected.text).rstrip("\n")
    session = Loaded((out / "model.onnx").read_bytes())
    trained, tokens = bigctl.load(str(run)), np.arange(12, dtype=np.int32).reshape(2, 6)
    network = cached.of(trained)
    whole = session(network.given({"inputs": tokens}))
    first = session(network.given({"inputs": tokens[:, :4]}))
    rest = session({"inputs": tokens[:, 4:], **cached.as_past(first)})
    assert rest.keys() == whole.keys() and len(whole) == len(network.inputs) == 5
    np.testing.assert_allclose(rest["logits"], whole["logits"][:, 4:], atol=1e-5)
    np.testing.assert_allclose(rest["present.1.key"], whole["present.1.key"], atol=1e-5)

    def opposite(inputs):  # from the second token on
        found = session(inputs)
        return {**found, "logits": -found["logits"]} if inputs["past_key_values.0.key"].shape[2] else found

    with pytest.raises(RunError, match="another text than `bigctl generate` from token 2 on"):
        cached.require_same_text(trained, network, opposite, "model.onnx")


def test_without_a_cache_it_writes_the_same_and_never_what_the_tokenizer_does_not_know(run, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(run), "--format", "jax", "--out", str(out)]) == 0
    (expected,) = bigctl.load(str(run)).generate(["the cat"], max_new_tokens=100, temperature=0)
    assert run_py(out, "the cat", "100").rstrip("\n") == ("the cat" + expected.text).rstrip("\n")
    settings = json.loads((out / "preprocessing.json").read_text())
    unknown = bigctl.load(str(run)).language_model.tokenizer.token_to_id(expected.text[0])
    (out / "preprocessing.json").write_text(json.dumps({**settings, "never": [unknown]}))
    sums = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    (out / "SHA256SUMS").write_text("".join(f"{sha256(out / name)}  {name}\n" for _, name in sums))
    assert run_py(out, "the cat", "1").rstrip("\n") not in ("the cat", ("the cat" + expected.text[0]).rstrip("\n"))


def test_what_has_no_cache_is_refused_in_a_line(tmp_path_factory, tmp_path, capsys):
    other = str(small.trained(tmp_path_factory) / "runs" / "small")
    out = ["--cache", "--out", str(tmp_path / "out")]
    assert main(["export", other, "--format", "onnx", *out]) == 2
    assert "keys and values are kept by language models, recipe=mlp_cls is none" in capsys.readouterr().err
    assert main(["export", other, "--format", "jax", *out]) == 2
    assert "--cache: --format jax has none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
