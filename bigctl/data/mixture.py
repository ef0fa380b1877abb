"""Several corpora as one data set: each is prepared, cached and split by itself, and joined to the others in memory.

So a corpus that is added, or mixed with others, makes none of them anew, and weights belong to no prepared data at all.
The one tokenizer that all have is made, where it is made here, of the training text of all of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bigctl.config import schema
from bigctl.config.schema import Data
from bigctl.data import cache, catalog, documents, splits
from bigctl.data.dataset import SPLITS, Dataset, Features
from bigctl.data.layouts import mixed_packed
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.layouts.layout import Layout
from bigctl.data.layouts.mixed import MixedWindows
from bigctl.data.layouts.mixed_packed import MixedPacked
from bigctl.data.notes import notes_of
from bigctl.data.preparation import stream as prepare_stream
from bigctl.data.sources.decoded import Columns
from bigctl.data.text import tokenization
from bigctl.data.text.encoding import Texts
from bigctl.data.text.joined_tokens import JoinedTokens, of_corpus
from bigctl.errors import DataError

_MADE = ("characters", "words", "bpe")
"""Tokenizers that are made of the training text."""


class Prepare(Protocol):
    """How each of them is prepared: `prepare.prepare`."""

    def __call__(
        self, config: Data, *, rebuild: bool, tokenizer: tokenization.Spec | None, stored: Path | None
    ) -> Dataset: ...


def prepare_mixture(
    config: Data,
    parts: Mapping[str, Data],
    prepare: Prepare,
    *,
    batches: BatchOptions,
    rebuild: bool = False,
    tokenizer: tokenization.Spec | None = None,
    stored: Path | None = None,
) -> Dataset:
    """One data set of several corpora.

    Args:
        config: the mixture.
        parts: its corpora by name.
        prepare: how one is prepared.
        batches: what the experiment says about windows; their length is 0 for no layout.
        rebuild, tokenizer, stored: as for `prepare.prepare`.

    Raises:
        DataError: naming the corpus that cannot be read, or is too short.
    """
    mixture = schema.Mixture.require(config, by="data.mixture")
    folder = cache.cache_folder(config, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        if tokenizer is not None and not tokenizer.stream:
            hint = "recipe=gpt_lm learns to write them"
            raise DataError("these are long texts, not texts that are examples", where="data", hint=hint)
        if tokenizer is not None and tokenizer.file is None and tokenizer.settings.type in _MADE:
            tokenizer = dataclasses.replace(
                tokenizer, file=_made(parts, tokenizer, folder, stored, rebuild, Path(scratch))
            )
        found: dict[str, Dataset] = {}
        for name, part in parts.items():
            try:
                _require_kind(part, tokenizer)
                found[name] = prepare(part, rebuild=rebuild, tokenizer=tokenizer, stored=stored)
                if batches.documents and "inputs" in found[name].splits["train"]:
                    found[name] = _packed(found[name], part, batches)
            except DataError as error:
                raise of_corpus(error, name) from error
    return _joined(mixture, found, folder, batches)


def _packed(dataset: Dataset, config: Data, batches: BatchOptions) -> Dataset:
    found = documents.packed(dataset, batches.block, batches.end_token, getattr(config, "format", None))
    return dataclasses.replace(found, features=dataclasses.replace(found.features, shape=(batches.block,)))


def _made(
    parts: Mapping[str, Data], spec: tokenization.Spec, folder: Path, stored: Path | None, rebuild: bool, scratch: Path
) -> Path:
    """The file of the tokenizer that all corpora have: that of the run, that of the cache, or one that is made now."""
    for file in (stored, None if rebuild else folder / cache.TOKENIZER):
        if file is not None and file.is_file():
            return file
    made = tokenization.build_tokenizer(spec, _training_texts(parts))
    file = scratch / cache.TOKENIZER
    file.write_text(made.to_str(pretty=True), encoding="utf-8")
    return file


def _training_texts(parts: Mapping[str, Data]) -> Iterator[str]:
    for name, part in parts.items():
        try:
            if (stream := catalog.stream(part)) is not None:
                yield from prepare_stream.training_texts(part, stream)
            elif not part.tokenized:
                yield from map(str, splits.split_stream(catalog.decode(part), part)["train"]["document"])
        except DataError as error:
            raise of_corpus(error, name) from error


def _require_kind(part: Data, tokenizer: tokenization.Spec | None) -> None:
    """That a tokenizer is one that the corpus can have."""
    made = None if tokenizer is None else tokenizer.settings.type
    if part.tokenized and made in _MADE:
        hint = "say which tokenizer made them: recipe.tokenizer.type=gpt2, bytes, file with its path, or ids"
        raise DataError(f"recipe.tokenizer.type={made} is made of text, and these are ready-made tokens", hint=hint)
    if not part.tokenized and made == "ids":
        hint = "recipe.tokenizer.type=gpt2, or the one that made the tokens of the other corpora"
        raise DataError("recipe.tokenizer.type=ids is for ready-made tokens, and this is text", hint=hint)


# ------------------------------------------------------------------------------------------------------------ joining


def _joined(config: schema.Mixture, parts: Mapping[str, Dataset], folder: Path, batches: BatchOptions) -> Dataset:
    block, first = batches.block, next(iter(parts.values()))
    by_split: dict[str, Columns] = {split: _columns(parts, split) for split in SPLITS}
    tokenized = all("inputs" in part.splits["train"] for part in parts.values())
    if block and tokenized and not batches.documents:
        _check_windows(config, parts, block)
    features = Features("stream", (block,) if block and tokenized else (), None, tokenizer=first.features.tokenizer)
    layout = _layout(config, tuple(parts), by_split, batches) if block and tokenized else None
    content = [[name, part.fingerprint] for name, part in parts.items()]
    fingerprint = hashlib.sha256(json.dumps(content).encode()).hexdigest()
    _keep(folder, first, features, fingerprint)
    texts = {split: () if tokenized else _texts(parts, split) for split in SPLITS}
    return Dataset(by_split, features, fingerprint, _info(config, parts), str(folder), texts, layout)


def _layout(
    config: schema.Mixture, names: tuple[str, ...], by_split: Mapping[str, Columns], batches: BatchOptions
) -> Layout:
    if not batches.documents:
        return MixedWindows(batches.block, names, config.shares)
    most = max(int(np.diff(columns["window_pieces"]).max()) for columns in by_split.values())
    return MixedPacked(batches.block, most, names, config.shares)


def _columns(parts: Mapping[str, Dataset], split: str) -> Columns:
    """The columns of a split, see `MixedWindows`."""
    columns = [part.splits[split] for part in parts.values() if "inputs" in part.splits[split]]
    joined = JoinedTokens(tuple(parts), [each["inputs"] for each in columns])
    if len(columns) < len(parts):  # without a tokenizer, of text among ready-made tokens
        return {"inputs": joined}  # type: ignore[dict-item]
    sizes = [int(each["bytes"][0]) if "bytes" in each else 0 for each in columns]
    found = {"ends": joined.ends, "bytes": np.array(sizes, np.int64)}
    if all("window_pieces" in each for each in columns):
        found |= mixed_packed.joined(dict(zip(parts, columns, strict=True)))
    return {"inputs": joined, **found}  # type: ignore[dict-item]  # it stands in for an array


def _texts(parts: Mapping[str, Dataset], split: str) -> tuple[Texts, ...]:
    """The documents of all corpora, where all are text."""
    found = [part.texts[split][0] for part in parts.values() if part.texts[split]]
    if len(found) < len(parts):
        return ()
    sizes = np.concatenate([[0], *(np.diff(texts.offsets) for texts in found)])
    return (Texts(np.concatenate([texts.content for texts in found]), np.cumsum(sizes, dtype=np.int64)),)


def _check_windows(config: schema.Mixture, parts: Mapping[str, Dataset], block: int) -> None:
    shares = config.shares or (1.0,) * len(parts)
    for (name, part), share in zip(parts.items(), shares, strict=True):
        for split, columns in part.splits.items():
            length, least = len(columns["inputs"]), block + 1 if split == "train" else 2
            if length < least and (share or split != "train"):
                what = f"its {split} text has {length} tokens, {least} are needed for one window and its targets"
                hint = "give more text, a smaller recipe.block, or leave the corpus out"
                raise DataError(what, where=f"data.corpora.{name}", hint=hint)


def _keep(folder: Path, first: Dataset, features: Features, fingerprint: str) -> None:
    """A folder of the mixture's own, with the tokenizer of all: its name is what the data is known by on this disk."""
    file = Path(first.path) / cache.TOKENIZER
    text = file.read_text(encoding="utf-8") if first.features.tokenizer else None
    there = cache.read_dataset(folder) if folder.is_dir() else None
    if there is None or there.info.get("corpora") != fingerprint:
        plain = dataclasses.replace(features, shape=())
        cache.write_dataset(folder, plain, {split: {} for split in SPLITS}, {"corpora": fingerprint}, text)


def _info(config: schema.Mixture, parts: Mapping[str, Dataset]) -> dict[str, Any]:
    """Facts for people: of each corpus, and sums over them."""
    info: dict[str, Any] = {"source": "mixture", "corpora": {}}
    for name, part in parts.items():
        kept = ("source", "files", "format", "tokens", "documents", "characters", "bytes", "unknown_tokens", "packing")
        info["corpora"][name] = {fact: part.info[fact] for fact in kept if fact in part.info}
    for fact in ("tokens", "documents", "characters", "bytes"):
        each = [facts.get(fact, {}) for facts in info["corpora"].values()]
        if all(set(SPLITS) <= set(known) for known in each):
            info[fact] = {split: sum(known[split] for known in each) for split in SPLITS}
    notes = [f"{name}: {note}" for name, part in parts.items() for note in notes_of(part)]
    info["notes"] = [*notes, *_shared_files(config), *_total_weight(config)]
    return info


def _shared_files(config: schema.Mixture) -> list[str]:
    """Notes on files that are in two corpora."""
    owner: dict[Path, str] = {}
    found = []
    for label, file in catalog.files(config):
        name, place = label.removeprefix("data.corpora."), file.resolve()
        if owner.setdefault(place, name) != name:
            found.append(f"{file} is in two corpora, {owner[place]} and {name}")
    return found


def _total_weight(config: schema.Mixture) -> list[str]:
    """A note on weights that are no shares yet."""
    total = sum(corpus.weight or 0.0 for corpus in config.corpora.values())
    if not total or abs(total - 1) < 1e-6:
        return []
    shares = ", ".join(f"{name} {share:.4g}" for name, share in zip(config.corpora, config.shares or (), strict=True))
    return [f"the weights add up to {total:.6g}, not to 1, and are divided by it: {shares}"]
