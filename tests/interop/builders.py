"""Small models on disk: as Hugging Face writes them, and as runs of ours."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from bigctl.config import schema
from bigctl.interop import bert
from bigctl.models.architecture import BertArchitecture, bert_architecture

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "good", "bad", "film", "##s"]
ARCHITECTURE = {"layers": 2, "width": 8, "heads": 2, "intermediate": 12, "positions": 16, "vocab": len(WORDS)}


def model(**changes) -> schema.Bert:
    return schema.Bert(**{**ARCHITECTURE, "pooler": True, **changes})


def architecture(**changes) -> BertArchitecture:
    return bert_architecture(model(**changes), 0)


def shapes(config: schema.Bert, outputs: int | None = 2) -> dict[str, tuple[int, ...]]:
    """Shapes of every parameter by path, written down by hand; outputs=None is the masked language model."""
    width, wide = config.width, config.intermediate
    result: dict[str, tuple[int, ...]] = {
        "encoder/embeddings/token/embedding": (config.vocab, width),
        "encoder/embeddings/position/embedding": (config.positions, width),
        "encoder/embeddings/segment/embedding": (2, width),
    }
    norms = ["encoder/embeddings/norm"]
    dense: dict[str, tuple[int, int]] = {}
    for i in range(config.layers):
        layer = f"encoder/layers/{i}"
        dense |= {f"{layer}/attention/{n}": (width, width) for n in ("query", "key", "value", "output")}
        dense |= {f"{layer}/up": (width, wide), f"{layer}/down": (wide, width)}
        norms += [f"{layer}/attention_norm", f"{layer}/output_norm"]
    if outputs is None:
        dense["transform"] = (width, width)
        norms.append("transform_norm")
        result["decoder_bias"] = (config.vocab,)
    else:
        dense |= {"pooler": (width, width)} if config.pooler else {}
        dense["head"] = (width, outputs)
    for name in norms:
        result |= {f"{name}/scale": (width,), f"{name}/bias": (width,)}
    for name, (rows, columns) in dense.items():
        result |= {f"{name}/kernel": (rows, columns), f"{name}/bias": (columns,)}
        if name.rpartition("/")[2] in config.lora.targets and config.lora.rank:
            result |= {f"{name}/lora_a": (rows, config.lora.rank), f"{name}/lora_b": (config.lora.rank, columns)}
    return result


def params(config: schema.Bert, outputs: int | None = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes(config, outputs).items()}


def folder(path: Path, values: dict[str, np.ndarray] | None = None, **settings) -> Path:
    """A Hugging Face folder with a vocab.txt; `settings` change its config.json, None removes a key."""
    path.mkdir(parents=True, exist_ok=True)
    values = params(model()) if values is None else values
    save_file(bert.to_tensors(values), path / "model.safetensors", metadata={"format": "pt"})
    config = {**bert.to_config(architecture(), pad=0), **settings}
    (path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return path


def tokenizer_json(path: Path) -> Path:
    """The tokenizer.json of a run, as the run stores it."""
    from bigctl.data.text import tokenization

    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    file = path / "tokenizer.json"
    tokenization.load_tokenizer(path / "vocab.txt").save(str(file))
    (path / "vocab.txt").unlink()
    return file
