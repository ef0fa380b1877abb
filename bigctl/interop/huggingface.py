"""A trained BERT, GPT-2, Llama, or model of pictures as a folder that `transformers` loads, with the same logits."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.interop import bert, decoder, decoder_config, vision_export
from bigctl.interop.folders import Finish, as_it_is, require_new, whole_or_nothing, write_json
from bigctl.interop.tensors import WEIGHTS, read_json
from bigctl.models.architecture import (
    BertArchitecture,
    DecoderArchitecture,
    bert_architecture,
    decoder_architecture,
    require_whole_heads,
)
from bigctl.runs.generation_config import GenerationConfig

CODE = "modeling_bigctl.py"

_SPECIAL = {"pad": "pad_token", "unk": "unk_token", "cls": "cls_token", "sep": "sep_token", "mask": "mask_token"}
_SPECIAL |= {"bos": "bos_token", "eos": "eos_token"}
_CLASSES = {
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "GPT2LMHeadModel": "AutoModelForCausalLM",
    "LlamaForCausalLM": "AutoModelForCausalLM",
    "MixtralForCausalLM": "AutoModelForCausalLM",
}


@dataclass(frozen=True)
class Export:
    """What is exported of a trained model.

    Attributes:
        model: its configuration.
        params: by path.
        tokenizer: its tokenizer.json.
        settings: what `data.tokenization.describe` says of that.
        classes: class names in order; None for a model that predicts none.
        per_token: whether each token has a class.
        several: whether a text may have several of them.
        generation_config: of a language model.
    """

    model: schema.Model
    params: Mapping[str, np.ndarray]
    tokenizer: Path
    settings: Mapping[str, Any]
    classes: tuple[str, ...] | None = None
    per_token: bool = False
    several: bool = False
    generation_config: GenerationConfig = GenerationConfig()


def export_model(trained: Export, folder: Path, finish: Finish = as_it_is) -> Path:
    """Write a trained model as config.json, model.safetensors and tokenizer files; LoRA is merged into the layers.

    A decoder becomes a `GPT2LMHeadModel`, a `LlamaForCausalLM` or, with experts, a `MixtralForCausalLM`, where one of
    them computes the same. Of BERT, a classifier with pooler on the first token is a `BertForSequenceClassification`,
    a tagger a `BertForTokenClassification`, a masked language model a `BertForMaskedLM`. No class of transformers has
    the other ways of pooling: beside those lies a small module of their own, loaded with `trust_remote_code=True`.
    `finish` see `folders`.

    Raises:
        ConfigError: if transformers has no such model, or the folder holds something already.
        RunError: if the folder cannot be written.
    """
    model, params = trained.model, trained.params
    if model.implementation == schema.Decoder.implementation:
        found = decoder_architecture(cast(schema.Decoder, model), len(_words(trained.tokenizer)))
        return write_decoder(params, found, trained.tokenizer, trained.generation_config, folder, finish)
    encoder = bert_architecture(cast(schema.Bert, model), len(params["encoder/embeddings/token/embedding"]))
    if trained.per_token:
        encoder = dataclasses.replace(encoder, pool="none")
    if encoder.lora_rank:
        params = bert.merge_lora(params, encoder.lora_alpha / encoder.lora_rank)
    return write_bert(
        params, encoder, trained.tokenizer, trained.settings, trained.classes, folder, finish, several=trained.several
    )  # fmt: skip


def require_exportable(model: schema.Model, where: str) -> None:
    """Raises ConfigError for a model that transformers has no class for, naming the run."""
    pictures = vision_export.knows(model)
    if not pictures and model.implementation not in (schema.Bert.implementation, schema.Decoder.implementation):
        raise ConfigError(
            f"transformers has no class for model={model.kind}; only bert, gpt, llama, resnet, vit and convnext can be "
            "exported to it",
            where=where,
            hint="bigctl.load(RUN).params gives the weights as arrays",
        )
    require_whole_heads(model, "transformers", where)
    if pictures:
        vision_export.require(model, where)


def write_vision(export: vision_export.Export, folder: Path, finish: Finish = as_it_is) -> Path:
    """Write a ResNet, ViT or ConvNeXt as a folder for `transformers`: all of it, or nothing; `finish` see `folders`.

    Raises:
        ConfigError, RunError: see `export_model`.
    """
    require_new(folder)
    config, processor, tensors = vision_export.files(export, str(folder))
    with whole_or_nothing(folder) as partial:
        vision_export.save(partial, tensors)
        write_json(partial / "config.json", config)
        shutil.copymode(partial / "config.json", partial / WEIGHTS)  # else only its owner could read it
        write_json(partial / "preprocessor_config.json", processor)
        finish(partial)
    return folder


def write_bert(
    params: Mapping[str, np.ndarray],
    model: BertArchitecture,
    tokenizer: Path,
    settings: Mapping[str, Any],
    classes: tuple[str, ...] | None,
    folder: Path,
    finish: Finish = as_it_is,
    *,
    several: bool = False,
) -> Path:
    """Write parameters as a folder for `transformers`: all of it, or nothing.

    Args:
        params: by path, without LoRA; what they hold says which model it is.
        model: the architecture.
        tokenizer: its tokenizer.json.
        settings: what `data.tokenization.describe` says of it.
        classes: class names in order; None for a masked language model.
        folder: a new one, or an empty one.
        finish: see `folders`.
        several: whether a text may have several classes.

    Raises:
        ConfigError, RunError: see `export_model`.
    """
    require_new(folder)
    described, words = read_json(tokenizer), _words(tokenizer)
    special = _special_tokens(words, settings)
    config = {
        **bert.to_config(model, pad=int(settings.get("pad", 0))),
        **_head(params, model, classes, several),
    }
    with whole_or_nothing(folder) as partial:
        _write_model(partial, config, bert.to_tensors(params), tokenizer)
        if described["model"].get("type") == "WordPiece":
            (partial / "vocab.txt").write_text("".join(f"{w}\n" for w in words.values()), encoding="utf-8")
        write_json(partial / "tokenizer_config.json", {**_tokenizer_config(described, settings), **special})
        write_json(partial / "special_tokens_map.json", special)
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name(CODE), partial / CODE)
        finish(partial)
    return folder


def write_decoder(
    params: Mapping[str, np.ndarray],
    model: DecoderArchitecture,
    tokenizer: Path,
    found: GenerationConfig,
    folder: Path,
    finish: Finish = as_it_is,
) -> Path:
    """Write a GPT-2, a Llama or a Mixtral as a folder for `transformers`: all of it, or nothing.

    Args:
        params, tokenizer, folder, finish: as for `write_bert`.
        model: the architecture.
        found: what becomes of tokenizer_config.json and generation_config.json.

    Raises:
        ConfigError, RunError: see `export_model`.
    """
    require_new(folder)
    words = _words(tokenizer)
    special = _special_tokens(words, found.special)
    named: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.context,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if found.chat_template:
        named["chat_template"] = found.chat_template
    config = decoder_config.to_config(model, special=found.special)
    with whole_or_nothing(folder) as partial:
        _write_model(partial, config, decoder.to_tensors(params, model), tokenizer)
        write_json(partial / "tokenizer_config.json", named)
        write_json(partial / "special_tokens_map.json", special)
        if len(found.ends) > 1:  # config.json names one
            write_json(partial / "generation_config.json", {"eos_token_id": list(found.ends)})
        finish(partial)
    return folder


def _write_model(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray], tokenizer: Path) -> None:
    from safetensors.numpy import save_file

    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    shutil.copymode(folder / "tokenizer.json", folder / WEIGHTS)  # else only its owner could read it
    write_json(folder / "config.json", config)


def _words(tokenizer: Path) -> dict[int, str]:
    """Tokens by number, in order."""
    from tokenizers import Tokenizer

    numbers = Tokenizer.from_file(str(tokenizer)).get_vocab(with_added_tokens=True)
    return {number: word for word, number in sorted(numbers.items(), key=lambda item: item[1])}


def _head(
    params: Mapping[str, np.ndarray], model: BertArchitecture, classes: tuple[str, ...] | None, several: bool
) -> dict[str, Any]:
    """What config.json says of the part above the encoder."""
    if "decoder_bias" in params:
        return {"architectures": ["BertForMaskedLM"]}
    names = classes or ()
    labels: dict[str, Any] = {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }
    if model.pool == "none":
        return {"architectures": ["BertForTokenClassification"], **labels}
    labels["problem_type"] = "multi_label_classification" if several else "single_label_classification"
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
    return {theirs: words[settings[ours]] for ours, theirs in _SPECIAL.items() if settings.get(ours) in words}


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


def auto_class(config: Mapping[str, Any]) -> str:
    """The class of transformers whose `from_pretrained` loads an export."""
    (name,) = config["architectures"]
    usual = "AutoModelForSequenceClassification"
    if name.endswith("ForImageClassification"):
        usual = "AutoModelForImageClassification"
    return _CLASSES.get(name, usual)


def loading_lines(config: Mapping[str, Any], folder: str) -> list[str]:
    """Lines of Python that load an export."""
    if config["architectures"][0].endswith("ForImageClassification"):
        return vision_export.loading_lines(folder)
    name = auto_class(config)
    trust = ", trust_remote_code=True" if "auto_map" in config else ""
    lines = [
        f"from transformers import {name}, AutoTokenizer",
        f"tokenizer = AutoTokenizer.from_pretrained({folder!r})",
        f"model = {name}.from_pretrained({folder!r}{trust})",
    ]
    if name == "AutoModelForCausalLM":
        lines += ['tokens = tokenizer("some text", return_tensors="pt")']
        return [*lines, "print(tokenizer.decode(model.generate(**tokens, max_new_tokens=50)[0]))"]
    return [
        *lines,
        'logits = model(**tokenizer(["some text"], return_tensors="pt", padding=True, truncation=True)).logits',
    ]


def notes(config: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What is to be said of an export besides."""
    found = []
    if "auto_map" in config:
        found.append(f"`{CODE}` beside the weights is the model's class; read it before you trust it.")
    if settings.get("truncate") == "head_tail":
        found.append("It was trained on the beginning and end of long texts; this tokenizer keeps the beginning.")
    return found
