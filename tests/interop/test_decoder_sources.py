"""Promises of `bigctl.interop.sources` for models that write text: GGUF, llama2.c and Hugging Face folders are found,
read exactly, and refused in one line where they are damaged."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from bigctl.config import compose, schema
from bigctl.errors import ConfigError, DataError
from bigctl.interop import decoder_config, llama2c, loading, sources, vocabularies
from bigctl.models.architecture import decoder_architecture
from bigctl.runs.generation_config import GenerationConfig
from bigctl.training.checkpoints.arrays import flatten
from bigctl.training.checkpoints.arrays import shapes as shapes_of
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress
from tests.conftest import SHARED_DATA

WIDTH, WIDE, LAYERS, HEADS, GROUPS, VOCAB, CONTEXT = 32, 64, 2, 4, 2, 262, 16
MODEL = schema.Llama(
    layers=LAYERS, width=WIDTH, heads=HEADS, kv_heads=GROUPS, intermediate=WIDE, context=CONTEXT, vocab=VOCAB
).with_defaults()
KERNELS = {
    "attention/query": (WIDTH, WIDTH), "attention/key": (WIDTH, WIDTH // 2), "attention/value": (WIDTH, WIDTH // 2),
    "attention/output": (WIDTH, WIDTH), "gate": (WIDTH, WIDE), "up": (WIDTH, WIDE), "down": (WIDE, WIDTH),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))


def shapes(vocab: int = VOCAB, tied: bool = True) -> dict[str, tuple[int, ...]]:
    result: dict[str, tuple[int, ...]] = {"token/embedding": (vocab, WIDTH), "final_norm/scale": (WIDTH,)}
    for i in range(LAYERS):
        result |= {f"layers/{i}/{name}/kernel": shape for name, shape in KERNELS.items()}
        result |= {f"layers/{i}/{name}/scale": (WIDTH,) for name in ("attention_norm", "mlp_norm")}
    return result if tied else {**result, "head/kernel": (WIDTH, vocab)}


def params(tied: bool = True) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes(tied=tied).items()}


def neighbours(rows: np.ndarray) -> np.ndarray:
    """The inverse of `llama2c.halves`: features half a head apart become neighbours."""
    depth = WIDTH // HEADS
    return rows.reshape(-1, 2, depth // 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def rows_of(name: str, values: np.ndarray) -> np.ndarray:
    """A parameter as llama.cpp and llama2.c lay it out."""
    rows = values.T if name.endswith("kernel") else values
    return neighbours(rows) if name.endswith(("query/kernel", "key/kernel")) else rows


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "\u2581a"]
SCORES = [0.0] * 259 + [-2.0, -3.0, -1.0]


def write_llama2c(folder: Path, values: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    tied = "head/kernel" not in values
    order = [f"layers/{i}/{part}" for part in llama2c._LAYER_PARTS for i in range(LAYERS)]
    content = struct.pack("<7i", WIDTH, WIDE, LAYERS, HEADS, GROUPS, VOCAB if tied else -VOCAB, CONTEXT)
    content += b"".join(rows_of(n, values[n]).tobytes() for n in ["token/embedding", *order, "final_norm/scale"])
    content += np.zeros(CONTEXT * WIDTH // HEADS, np.float32).tobytes()
    content += b"" if tied else rows_of("head/kernel", values["head/kernel"]).tobytes()
    (folder / "tiny.bin").write_bytes(content)
    words = struct.pack("<i", 6)
    for piece, score in zip(PIECES, SCORES, strict=True):
        raw = piece.replace("\u2581", " ").encode()
        words += struct.pack("<fi", score, len(raw)) + raw
    (folder / f"tok{VOCAB}.bin").write_bytes(words)
    return folder / "tiny.bin"


def write_gguf(file: Path, values: dict[str, np.ndarray], quantised: Any = None, **metadata: Any) -> Path:
    writer = gguf.GGUFWriter(file, "llama")
    sizes = {
        "block_count": LAYERS, "embedding_length": WIDTH, "attention.head_count": HEADS,
        "attention.head_count_kv": GROUPS, "feed_forward_length": WIDE, "context_length": CONTEXT,
    }  # fmt: skip
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("llama.rope.freq_base", 5000.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(PIECES)
    writer.add_token_scores(SCORES)
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{{ messages }}")
    for name, value in metadata.items():
        (writer.add_float32 if isinstance(value, float) else writer.add_string)(name.replace("__", "."), value)
    names = {"token/embedding": "token_embd", "final_norm/scale": "output_norm", "head/kernel": "output"}
    theirs = {
        "attention_norm": "attn_norm", "attention/query": "attn_q", "attention/key": "attn_k",
        "attention/value": "attn_v", "attention/output": "attn_output", "mlp_norm": "ffn_norm", "gate": "ffn_gate",
        "up": "ffn_up", "down": "ffn_down",
    }  # fmt: skip
    for name, value in values.items():
        if name not in names:
            _, number, module = name.rpartition("/")[0].split("/", 2)
            names[name] = f"blk.{number}.{theirs[module]}"
        rows = np.ascontiguousarray(rows_of(name, value))
        if quantised is not None and rows.ndim == 2:
            writer.add_tensor(f"{names[name]}.weight", gguf.quantize(rows, quantised), raw_dtype=quantised)
        else:
            writer.add_tensor(f"{names[name]}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def assert_taken(source: sources.Source, values: dict[str, np.ndarray], atol: float = 0.0) -> None:
    padded = shapes(384, tied="head/kernel" not in values)
    taken, new, unused = loading.load_weights(source, padded)
    assert (new, unused) == ([], [])
    for name, value in values.items():
        assert taken[name].shape == padded[name]
        real = taken[name][tuple(slice(size) for size in value.shape)]
        np.testing.assert_allclose(real, value, rtol=0, atol=atol, err_msg=name)
        assert np.abs(taken[name]).sum() == pytest.approx(np.abs(real).sum())  # zeros elsewhere


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_of_llama2c_is_read_with_its_tokenizer(tmp_path: Path, tied: bool) -> None:
    from tokenizers import Tokenizer

    file = write_llama2c(tmp_path / "tiny", params(tied))
    for name in (file, file.parent):
        source = sources.locate_source(str(name))
        assert (source.model, source.format, source.generation_config.special["bos"]) == ("llama", "llama2c", 1)
        written = decoder_config.read_architecture(
            decoder_config.to_config(decoder_architecture(MODEL, 0), special={}), ""
        )[1]
        expected = {**written.decided(), "tied": tied}
        assert source.architecture == expected
        assert_taken(source, params(tied))
    tokenizer = Tokenizer.from_file(str(source.tokenizer))
    assert tokenizer.encode("a a").tokens == ["<s>", "\u2581a", "\u2581a"]
    assert tokenizer.encode("\u00e4", add_special_tokens=False).tokens == ["\u2581", "<0xC3>", "<0xA4>"]
    assert tokenizer.decode(tokenizer.encode("a \u00e4a").ids) == "a \u00e4a"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", [None, "Q8_0", "Q4_1", "F16"])
def test_a_gguf_file_is_read_with_its_tokenizer(tmp_path: Path, kind: str | None, tied: bool) -> None:
    from tokenizers import Tokenizer

    quantised = kind and gguf.GGMLQuantizationType[kind]
    file = write_gguf(tmp_path / "tiny.gguf", params(tied), quantised)
    for name in (file, tmp_path):
        source = sources.locate_source(str(name))
        assert source.model == "llama"
        assert source.generation_config == GenerationConfig({"bos": 1, "eos": 2}, (2,), "{{ messages }}")
        assert source.architecture["eps"] == 1e-6 and source.architecture["rope_theta"] == 5000.0
        assert source.architecture["tied"] is tied
        assert_taken(source, params(tied), atol={None: 0.0, "F16": 2e-3, "Q8_0": 0.02, "Q4_1": 0.3}[kind])
    assert Tokenizer.from_file(str(source.tokenizer)).encode("a").tokens == ["<s>", "\u2581a"]


def test_the_vocabulary_of_older_gpt2_folders_is_read(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    config = {"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2, "n_positions": 8, "vocab_size": 4}
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    save_file({"wte.weight": np.ones((4, 4), np.float32)}, tmp_path / "model.safetensors")
    assert sources.locate_source(str(tmp_path)).tokenizer is None
    (tmp_path / "vocab.json").write_text('{"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    source = sources.locate_source(str(tmp_path))
    assert Tokenizer.from_file(str(source.tokenizer)).encode("abb<|endoftext|>").ids == [2, 1, 3]
    assert source.generation_config.ends == (3,) and source.generation_config.special == {"eos": 3}
    with pytest.raises(DataError, match=r"no weights for position/embedding \[8, 4\]"):
        loading.load_weights(source, {"token/embedding": (128, 4), "position/embedding": (8, 4)})
    with pytest.raises(DataError, match="vocabulary that does not fit the weights: 256 tokens, and 4 rows"):
        loading.load_weights(source, {"token/embedding": (256, 4)})


def test_the_model_is_as_the_weights_have_it_or_refused(tmp_path: Path) -> None:
    file = str(write_gguf(tmp_path / "tiny.gguf", params()))
    filled = sources.fill_architecture(schema.Llama(init_from=file, context=8))
    assert isinstance(filled, schema.Llama)
    assert (filled.layers, filled.kv_heads, filled.context, filled.rope_theta) == (LAYERS, GROUPS, 8, 5000.0)
    assert sources.fill_architecture(schema.Llama(init_from=file, layers=1)).layers == 1
    with pytest.raises(ConfigError, match="model.layers=9 is not what the weights have: 2"):
        sources.fill_architecture(schema.Llama(init_from=file, layers=9))
    with pytest.raises(ConfigError, match="holds weights of model=llama, this is model=gpt"):
        sources.fill_architecture(schema.Gpt(init_from=file))
    with pytest.raises(ConfigError, match="model.kv_heads=4 is not what the weights have: 2"):
        sources.fill_architecture(schema.Llama(init_from=file, kv_heads=4))
    with pytest.raises(ConfigError, match="model.head_dim=4 is not what the weights have: null"):
        sources.fill_architecture(schema.Llama(init_from=file, head_dim=4))
    for key in ("experts", "experts_per_token", "capacity_factor"):
        with pytest.raises(ConfigError, match=f"model.{key}=2 is for models of experts, the weights have none"):
            sources.fill_architecture(schema.Llama(init_from=file, **{key: 2}))


def test_a_run_hands_on_its_weights_and_all_of_its_architecture(tmp_path: Path) -> None:
    """Also the size of its vocabulary, which its padded embedding does not tell."""
    values = {name: np.pad(v, [(0, 122), (0, 0)]) if name == "token/embedding" else v for name, v in params().items()}
    model = schema.Gpt(
        **{**dataclasses.asdict(MODEL), "kind": "gpt", "vocab": None, "eps": None, "activation": "swiglu"}
    )
    config = schema.Config(
        recipe=schema.GptLm(), model=model, optimizer=schema.AdamW(), schedule=schema.Linear(),
        data=schema.Packaged(name="x"), mesh=schema.Mesh(), train=schema.Train(steps=1),
    )  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(compose.to_yaml(config))
    features = {"tokenizer": {"type": "bytes", "vocab_size": VOCAB, "eos": 261}}
    (run / "run.json").write_text(json.dumps({"schema": 1, "data": {"features": features}}))
    (run / "tokenizer.json").write_text("{}")
    state = {"params": {n: jnp.asarray(v) for n, v in values.items()}, "step": jnp.int32(3)}
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    checkpoints = Checkpoints(run / "checkpoints")
    checkpoints.save(state, Progress(step=3, best=0.5, best_step=3), {"shapes": shapes_of(state)})
    checkpoints.close()
    source = sources.locate_source(str(run))
    assert (source.generation_config.special, source.generation_config.ends, source.format) == (
        {"eos": 261},
        (261,),
        "run",
    )
    filled = sources.fill_architecture(schema.Gpt(init_from=str(run)), source)
    assert isinstance(filled, schema.Gpt)
    assert (filled.vocab, filled.position, filled.norm, filled.activation) == (VOCAB, "rope", "rms", "swiglu")
    assert_taken(source, params())
    with pytest.raises(ConfigError, match="model.activation=relu2 is not what the weights have: swiglu"):
        sources.fill_architecture(schema.Gpt(init_from=str(run), activation="relu2"), source)


# ----------------------------------------------------------------------------------------------------------- bad files


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        sources.locate_source(str(path))
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line


@pytest.mark.parametrize("share", [0.0, 0.0002, 0.01, 0.03, 0.2, 0.999])
def test_a_gguf_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    content = write_gguf(tmp_path / "whole.gguf", params()).read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    refused(tmp_path / "cut.gguf", "cut.gguf: ", "cut short" if share > 0 else "no GGUF file")


def test_a_gguf_file_of_something_else_is_refused(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf", params()).read_bytes()
    (tmp_path / "odd.gguf").write_bytes(b"GGML" + content[4:])
    refused(tmp_path / "odd.gguf", "is no GGUF file")
    (tmp_path / "odd.gguf").write_bytes(content[:4] + struct.pack("<I", 9) + content[8:])
    refused(tmp_path / "odd.gguf", "version 9")
    (tmp_path / "odd.gguf").write_bytes(content[:8] + struct.pack("<Q", 2**60) + content[16:])
    refused(tmp_path / "odd.gguf", "cut short or damaged")
    refused(
        write_gguf(tmp_path / "scaled.gguf", params(), llama__rope__scaling__type="yarn"), "llama.rope.scaling.type"
    )
    refused(write_gguf(tmp_path / "linear.gguf", params(), llama__rope__scale_linear=4.0), "llama.rope.scale_linear")
    sources.locate_source(str(write_gguf(tmp_path / "plain.gguf", params(), llama__rope__scale_linear=1.0)))
    refused(tmp_path, "GGUF files", "give one")


def test_more_layers_than_the_file_has_tensors_are_refused_at_once(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "whole.gguf", params()).read_bytes()
    key = b"llama.block_count" + struct.pack("<I", 4)
    assert content.count(key) == 1
    place = content.index(key) + len(key)
    (tmp_path / "odd.gguf").write_bytes(content[:place] + struct.pack("<I", 2**32 - 1) + content[place + 4 :])
    refused(tmp_path / "odd.gguf", "says that it has 4,294,967,295 layers, and holds 20 tensors")


def tensor_place(content: bytes, name: str) -> int:
    """Where the header keeps the offset of a tensor, a matrix."""
    return content.index(name.encode()) + len(name) + 4 + 2 * 8 + 4


def test_tensors_of_a_gguf_file_are_aligned_and_do_not_overlap(tmp_path: Path) -> None:
    content = bytearray(write_gguf(tmp_path / "whole.gguf", params()).read_bytes())
    place = tensor_place(content, "blk.1.ffn_up.weight")
    (offset,) = struct.unpack_from("<Q", content, place)
    struct.pack_into("<Q", content, place, offset + 4)
    (tmp_path / "odd.gguf").write_bytes(content)
    refused(
        tmp_path / "odd.gguf", f"blk.1.ffn_up.weight begins {offset + 4:,} bytes after the header", "multiple of 32"
    )
    struct.pack_into("<Q", content, place, offset - 32)
    (tmp_path / "odd.gguf").write_bytes(content)
    refused(tmp_path / "odd.gguf", "blk.1.ffn_up.weight begins at byte", "goes on to")


def test_a_token_as_long_as_no_token_is_refused_at_once(tmp_path: Path) -> None:
    for make in (
        lambda pieces: vocabularies.sentence_piece(pieces, [0.0] * 2, special=["<unk>"], where="x.gguf"),
        lambda pieces: vocabularies.byte_level(pieces, [], special=[], split="gpt-2", where="x.gguf"),
    ):
        with pytest.raises(DataError, match="token 1 has 120,000 characters"):
            make(["<unk>", "a" * 120_000])


def test_a_tokenizer_is_stored_by_many_at_once(tmp_path: Path) -> None:
    made = vocabularies.byte_level(["a", "b"], [], special=[], split="gpt-2", where="x.gguf")
    with ThreadPoolExecutor(8) as pool:
        files = set(pool.map(lambda _: vocabularies.store_tokenizer(made), range(32)))
    (file,) = files
    assert file.read_text(encoding="utf-8") == made.to_str(pretty=True)
    assert [found.name for found in file.parent.iterdir()] == [file.name]


def test_damaged_files_of_llama2c_are_refused(tmp_path: Path) -> None:
    file = write_llama2c(tmp_path / "tiny", params())
    content, words = file.read_bytes(), file.with_name(f"tok{VOCAB}.bin").read_bytes()
    file.write_bytes(content[:-100])
    refused(file, "tiny.bin: is cut short", "fetch it again")
    file.write_bytes(content + b"1234")
    refused(file, "longer than its header says")
    file.write_bytes(content)
    for bad, reason in ((words[:-1], "damaged at token"), (words[:-20], "cut short"), (words + b"1", "more than")):
        file.with_name(f"tok{VOCAB}.bin").write_bytes(bad)
        refused(file, f"tok{VOCAB}.bin", reason)
    file.write_bytes(pickle.dumps({"a": [1.0] * 100}, protocol=2))
    refused(file, "pickle")
    for few in (b"", content[:10], b"\0" * 100):
        file.write_bytes(few)
        refused(file, "tiny.bin: is no file of weights", "llama2.c")


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    values = params()
    values["layers/1/down/kernel"][3, 3] = np.nan
    for file in (write_gguf(tmp_path / "tiny.gguf", values), write_llama2c(tmp_path / "tiny", values)):
        with pytest.raises(DataError, match="layers/1/down/kernel holds values that are not finite"):
            loading.load_weights(sources.locate_source(str(file)), shapes(384))


def test_a_tokenizer_of_an_unknown_make_is_refused() -> None:
    with pytest.raises(DataError, match="kind 'tekken' is not supported"):
        vocabularies.byte_level(["a"], [], special=[], split="tekken", where="x.gguf")
    with pytest.raises(DataError, match="merges do not fit"):
        vocabularies.byte_level(["a"], [("a", "b")], special=[], split="gpt-2", where="x.gguf")


# -------------------------------------------------------------------------------------------------------- known weights


@pytest.mark.skipif(not (SHARED_DATA / "stories260K").is_dir(), reason="no shared data")
def test_stories260k_tells_its_known_story() -> None:
    from flax import nnx
    from tokenizers import Tokenizer

    from bigctl.models.decoder import Decoder

    source = sources.locate_source(str(SHARED_DATA / "stories260K"))
    config = sources.fill_architecture(schema.Llama(init_from=source.name), source)
    assert isinstance(config, schema.Llama)
    model = Decoder(config, 512, rngs=nnx.Rngs(params=jax.random.key(0)))
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    weights, new, unused = loading.load_weights(source, {n: v.shape for n, v in flatten(state).items()})
    assert (new, unused) == ([], [])
    tree = jax.tree_util.tree_map_with_path(
        lambda path, _: jnp.asarray(weights["/".join(str(p.key) for p in path)]), state
    )
    nnx.update(model, tree)
    extend = nnx.jit(lambda m, *arguments: m.extend(*arguments))
    tokens, cache = [source.generation_config.special["bos"]], model.cache(1, 64)
    for place in range(40):
        hidden, cache = extend(model, jnp.array([tokens[-1:]]), cache, jnp.array([place]))
        tokens.append(int(jnp.argmax(model.logits(hidden[0, 0]))))
    told = Tokenizer.from_file(str(source.tokenizer)).decode(tokens)
    assert told.startswith("Once upon a time, there was a little girl named Lily. She loved to play outside")
