"""A trained BERT as a folder that `transformers` loads, with the same logits."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigctl.config import schema
from bigctl.errors import ConfigError, RunError
from bigctl.interop import bert
from bigctl.interop.tensors import WEIGHTS, read_json

if TYPE_CHECKING:
    from bigctl.inference.trained import TrainedRun

CODE = "modeling_bigctl.py"

_SPECIAL = {"pad": "pad_token", "unk": "unk_token", "cls": "cls_token", "sep": "sep_token", "mask": "mask_token"}


def export(trained: TrainedRun, folder: Path) -> Path:
    """Write a trained BERT as config.json, model.safetensors and tokenizer files; LoRA is merged into the layers.

    A classifier with pooler on the first token is a `BertForSequenceClassification`, a masked language model a
    `BertForMaskedLM`. No class of transformers has the other ways of pooling: beside those lies a small module of
    their own, which is loaded with `trust_remote_code=True`.

    Raises:
        ConfigError: if the model is no BERT, or the folder holds something already.
        RunError: if the folder cannot be written, or the run has lost its tokenizer.
    """
    from bigctl.training.checkpoint import flatten

    model = trained.config.model
    if not isinstance(model, schema.Bert):
        raise ConfigError(
            f"transformers has no class for model={model.kind}; only model=bert can be exported to it",
            where=str(trained.run.path),
            hint="bigctl.load(RUN).params gives the weights as arrays",
        )
    tokenizer = trained.run.path / "tokenizer.json"
    if not tokenizer.is_file():
        raise RunError("the run has lost its tokenizer.json", where=str(trained.run.path))
    params = {name: np.asarray(values, np.float32) for name, values in flatten(trained.params).items()}
    if model.lora.rank:
        params = bert.merge_lora(params, model.lora.alpha / model.lora.rank)
    settings = dict(trained.features.tokenizer or {})
    about = f"{trained.run.path.name}, step {trained.step}"
    return write(params, model, tokenizer, settings, trained.features.classes, folder, about=about)


def write(
    params: Mapping[str, np.ndarray],
    model: schema.Bert,
    tokenizer: Path,
    settings: Mapping[str, Any],
    classes: tuple[str, ...] | None,
    folder: Path,
    *,
    about: str,
) -> Path:
    """Write parameters as a folder for `transformers`: all of it, or nothing.

    Args:
        params: by path, without LoRA; what they hold says which model it is.
        model: the architecture, all of it given.
        tokenizer: its tokenizer.json.
        settings: what `data.text.describe` says of it.
        classes: class names in order; None for a masked language model.
        folder: a new one, or an empty one.
        about: one line for the README.

    Raises:
        ConfigError, RunError: see `export`.
    """
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer

    require_new(folder)
    described = read_json(tokenizer)
    numbers = Tokenizer.from_file(str(tokenizer)).get_vocab(with_added_tokens=True)
    words = {number: word for word, number in sorted(numbers.items(), key=lambda item: item[1])}
    special = _special_tokens(words, settings)
    vocab = len(params["encoder/embeddings/token/embedding"])
    config = {
        **bert.to_config(model, vocab=vocab, pad=int(settings.get("pad", 0))),
        **_head(params, model, classes),
    }
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        save_file(bert.to_tensors(params), partial / WEIGHTS, metadata={"format": "pt"})
        shutil.copyfile(tokenizer, partial / "tokenizer.json")
        shutil.copymode(partial / "tokenizer.json", partial / WEIGHTS)  # else only its owner could read it
        if described["model"].get("type") == "WordPiece":
            (partial / "vocab.txt").write_text("".join(f"{w}\n" for w in words.values()), encoding="utf-8")
        _write_json(partial / "tokenizer_config.json", {**_tokenizer_config(described, settings), **special})
        _write_json(partial / "special_tokens_map.json", special)
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name(CODE), partial / CODE)
        (partial / "README.md").write_text(_readme(config, settings, about), encoding="utf-8")
        _write_json(partial / "config.json", config)
        partial.rename(folder)
    except OSError as error:
        raise RunError(f"cannot be written: {error.strerror or error}", where=str(folder)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def require_new(folder: Path) -> None:
    """Raises ConfigError if a folder holds something: nothing is ever overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("exists already", where=str(folder), hint="give another --out, or remove it first")


def _head(params: Mapping[str, Any], model: schema.Bert, classes: tuple[str, ...] | None) -> dict[str, Any]:
    """What config.json says of the part above the encoder."""
    if "decoder_bias" in params:
        return {"architectures": ["BertForMaskedLM"]}
    names = classes or ()
    labels = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }
    if model.pooler and model.pool == "cls":
        return {"architectures": ["BertForSequenceClassification"], **labels}
    name = "BertForPooledClassification"
    return {
        "architectures": [name],
        "auto_map": {"AutoModelForSequenceClassification": f"{CODE.removesuffix('.py')}.{name}"},
        "bigctl_pool": model.pool,
        "bigctl_pooler": model.pooler,
        **labels,
    }


def _special_tokens(words: Mapping[int, str], settings: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by the names that transformers has for them."""
    return {theirs: words[settings[ours]] for ours, theirs in _SPECIAL.items() if ours in settings}


def _tokenizer_config(described: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    normalizer = described.get("normalizer") or {}
    lowercase = {"do_lower_case": normalizer["lowercase"]} if "lowercase" in normalizer else {}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": settings.get("max_length"),
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "padding_side": "right",
        "truncation_side": "left" if settings.get("truncate") == "tail" else "right",
        "clean_up_tokenization_spaces": False,
        **lowercase,
    }


def loading(config: Mapping[str, Any], folder: str) -> list[str]:
    """Lines of Python that load an export."""
    masked = config["architectures"] == ["BertForMaskedLM"]
    name = "AutoModelForMaskedLM" if masked else "AutoModelForSequenceClassification"
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    return [
        f"from transformers import {name}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        f"model = {name}.from_pretrained({folder!r}{trust})",
        'logits = model(**tokenizer(["some text"], return_tensors="pt", padding=True, truncation=True)).logits',
    ]


def _readme(config: Mapping[str, Any], settings: Mapping[str, Any], about: str) -> str:
    kind = "masked language model" if config["architectures"] == ["BertForMaskedLM"] else "classifier of texts"
    lines = [f"A BERT, {kind}, exported by bigctl from {about}.", "", "```python", *loading(config, "."), "```"]
    if "auto_map" in config:
        lines += ["", f"`{CODE}` beside the weights is the model's class; read it before you trust it."]
    if settings.get("truncate") == "head_tail":
        lines += ["", "It was trained on the beginning and end of long texts; this tokenizer keeps the beginning."]
    return "\n".join(lines) + "\n"


def _write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
