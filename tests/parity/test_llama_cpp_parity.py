"""Promise of `bigctl export --format gguf`: llama.cpp itself cuts texts into the same tokens, writes the same text, and
would have rounded the weights to the same bits."""

from __future__ import annotations

import ctypes
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.generation.options import GenerationOptions
from bigctl.inference.exporters import gguf_model
from bigctl.interop import gguf_export

xllamacpp = pytest.importorskip("xllamacpp")  # llama.cpp as a package

SIZES = ["model.layers=2", "model.width=64", "model.heads=4", "model.context=128", "train.batch_size=8"]
KEYS = ["recipe=gpt_lm", "recipe.tokenizer.type=bpe", "recipe.tokenizer.size=320", "train.steps=60", *SIZES]
MODELS = {
    "llama": ["model=llama_tiny", "model.kv_heads=2", "model.intermediate=128", "optimizer.lr=0.01"],
    "gpt": ["model=gpt_nano", "optimizer.lr=0.01"],
}
PROMPT = "17 cats sat on"


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    lines = [f"{n} cats sat on {n % 7} mats, and it's raining." for n in range(2000)]
    (folder / "book.txt").write_text("\n".join(lines))
    keys = [*KEYS, *MODELS[request.param], "data=text", f"data.path={folder / 'book.txt'}"]
    bigctl.train(keys, folder / "run", quiet=True)
    return folder / "run"


class Server:
    """llama.cpp's server with a file."""

    def __init__(self, file: Path):
        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel, settings.warmup = 128, 1, False
        settings.cpuparams.n_threads = 1
        self._server = xllamacpp.Server(settings)

    def ask(self, path: str, body: Mapping[str, Any]) -> Any:
        data, kind = json.dumps(body).encode(), {"content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self._server.listening_address + path, data, kind)) as said:
            return json.load(said)


def test_llama_cpp_writes_what_generate_writes(run: Path, tmp_path: Path) -> None:
    assert main(["export", str(run), "--format", "gguf", "--out", str(tmp_path / "out")]) == 0
    model = bigctl.load(str(run)).language_model
    server = Server(tmp_path / "out" / "model.gguf")
    options = GenerationOptions(temperature=0.0, max_new_tokens=64)
    assert server.ask("/tokenize", {"content": PROMPT})["tokens"] == model.encode(PROMPT, options)
    asked = {"prompt": PROMPT, "temperature": 0, "n_predict": 64, "cache_prompt": False, "ignore_eos": False}
    said = server.ask("/completion", asked)["content"]
    assert len(said) > 100 and said == model.generate([PROMPT], options)[0].text


@pytest.mark.parametrize(("kind", "flag"), [("Q8_0", "--int8"), ("Q4_0", "--int4")])
def test_weights_are_rounded_as_llama_cpp_rounds_them(run: Path, tmp_path: Path, kind: str, flag: str) -> None:
    """Its quantiser, called on each matrix of the run, gives the blocks of the file, bit for bit."""
    assert main(["export", str(run), "--format", "gguf", flag, "--out", str(tmp_path / "out")]) == 0
    file = tmp_path / "out" / "model.gguf"
    assert Server(file).ask("/completion", {"prompt": PROMPT, "n_predict": 4})["tokens_predicted"] == 4
    gguf_export.write(gguf_model._export(bigctl.load(str(run))), tmp_path / "whole.gguf", "F32", "run")
    whole = {
        tensor.name: np.ascontiguousarray(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors
    }
    rounded = [tensor for tensor in gguf.GGUFReader(file).tensors if tensor.tensor_type.name == kind]
    assert len(rounded) > 8
    for tensor in rounded:
        expected = _rounded(whole[tensor.name], tensor.tensor_type.value, tensor.data.nbytes)
        np.testing.assert_array_equal(np.asarray(tensor.data).reshape(-1), expected, err_msg=tensor.name)


def _rounded(rows: np.ndarray, kind: int, size: int) -> np.ndarray:
    ggml = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("*.so"))))
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    ggml.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    found = np.zeros(size, np.uint8)
    assert ggml.ggml_quantize_chunk(kind, rows.ctypes.data, found.ctypes.data, 0, *rows.shape, None) == size
    return found
