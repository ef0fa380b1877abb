"""Source -> decoded array cache on disk -> memory-mapped `Dataset`."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigctl.config.schema import Data
from bigctl.data import cache, catalog, documents, in_place, mixture, origins, splits
from bigctl.data.dataset import Dataset
from bigctl.data.files import file_index, remote
from bigctl.data.layouts.choose import NO_OPTIONS, BatchOptions, choose_layout
from bigctl.data.layouts.packed import Packed
from bigctl.data.layouts.windows import Windows
from bigctl.data.pictures import sums, taken
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.preparation import checks, encode
from bigctl.data.preparation import rows as prepare_rows
from bigctl.data.preparation import stream as prepare_stream
from bigctl.data.preparation.deduplicate import deduplicated
from bigctl.data.sources.bad_rows import LEFT_OUT, require_few
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.target import NONE, TOKEN_CLASS, Target
from bigctl.data.text import tokenization
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import DataError
from bigctl.files import disk_size, sha256


def prepare(
    config: Data,
    *,
    regression: bool = False,
    rebuild: bool = False,
    tokenizer: tokenization.Spec | None = None,
    stored: Path | None = None,
    batches: BatchOptions = NO_OPTIONS,
) -> Dataset:
    """The data set of a configuration, from the cache or newly decoded into it.

    Args:
        config: the `data` part of an experiment.
        regression: whether the target is real-valued.
        rebuild: decode again even where a cache exists.
        tokenizer: how text becomes numbers; None leaves texts as they are.
        stored: the tokenizer.json that a run has made before, which is then used and none is made.
        batches: what the experiment says about batches.

    Raises:
        DataError: if the data cannot be found, fetched, decoded or stored.
    """
    config = remote.local(config)
    if parts := catalog.parts(config):
        given: dict[str, Any] = {"rebuild": rebuild, "tokenizer": tokenizer, "stored": stored}
        return mixture.prepare_mixture(config, parts, prepare, batches=batches, **given)
    named = folder = cache.cache_folder(config, regression=regression, tokenizer=tokenizer)
    wanted = tokenizer
    digest = sha256(stored) if stored is not None and stored.is_file() else None
    if not rebuild:
        dataset, folder = _opened(folder, digest, config, regression)
        if dataset is not None:
            return _with_layout(dataset, batches, config)
    if digest and tokenizer is not None:
        tokenizer = dataclasses.replace(tokenizer, file=stored)

    def unchanged() -> bool:
        return cache.cache_folder(config, regression=regression, tokenizer=wanted) == named

    if (decode := catalog.by_blocks(config, regression)) is not None:
        prepare_rows.prepare(folder, config, decode, tokenizer, regression, unchanged)
    elif (stream := catalog.stream(config)) is not None:
        _refuse_examples(tokenizer)
        prepare_stream.prepare(folder, config, stream, tokenizer, unchanged)
    else:
        _decode_into(folder, config, regression, tokenizer)
    dataset = cache.read_dataset(folder)
    if dataset is None:
        raise DataError("cannot be read back after it was written", where=str(folder), hint="check the disk")
    _verify(dataset)
    return _with_layout(dataset, batches, config)


def _opened(folder: Path, digest: str | None, config: Data, regression: bool) -> tuple[Dataset | None, Path]:
    """The set that is there already, where it is sound and was made with the tokenizer of a digest; and the folder that
    it is, or else belongs, in. Raises DataError where it cannot be used."""
    for place in (folder, folder.with_name(f"{folder.name}-{digest[:8]}") if digest else None):
        if place is None or not place.is_dir():
            continue
        dataset = cache.read_dataset(place)
        if dataset is None:
            print(f"data: the cache {place} is damaged; making it again", file=sys.stderr)
        elif digest in (None, (dataset.features.tokenizer or {}).get("sha256")):
            if lost := in_place.lost(dataset):
                print(f"data: {lost} was moved, copied or touched; making the index again", file=sys.stderr)
                return None, place
            checks.check_target(dataset.features.target, regression)
            require_few(dataset.info.get(LEFT_OUT, ()), getattr(config, "bad_limit", 1.0))
            _verify(dataset)
            return dataset, place
        elif place is folder:
            folder = folder.with_name(f"{folder.name}-{digest[:8]}")  # made with a tokenizer of another version
    return None, folder


def _verify(dataset: Dataset) -> None:
    """Decode all pictures, and read all tokens, that stay in their files, where what seems unchanged is not trusted."""
    if file_index.trusted():
        return
    for part in in_place.token_files(dataset):
        try:
            file_index.require_as_kept(Path(part.file))
        except OSError as error:
            raise DataError(f"the file cannot be read: {error.strerror}", where=part.file) from error
    for columns in dataset.splits.values():
        images = cast(object, columns.get("inputs"))
        if isinstance(images, EncodedImages):
            images.verify()


def _decode_into(folder: Path, config: Data, regression: bool, tokenizer: tokenization.Spec | None) -> None:
    """Decode, split and encode a source into a cache folder."""
    decoded = catalog.decode(config, regression)
    decoded = dataclasses.replace(decoded, splits=origins.with_origins(decoded))
    if config.deduplicate:
        decoded = deduplicated(decoded)
    checks.check_target(decoded.target, regression)
    if decoded.kind in ("stream", "tokens"):
        _refuse_examples(tokenizer)
    if decoded.kind == "tokens":
        _refer_to_tokens(folder, decoded, config, tokenizer)
        return
    arrays: list[np.ndarray] = []
    if decoded.kind == "image" and decoded.index is None:
        decoded = dataclasses.replace(decoded, splits={name: {**own} for name, own in decoded.splits.items()})
        arrays = taken.in_place(decoded.splits, "image")
    by_split = (
        splits.split_stream(decoded, config) if decoded.kind == "stream" else splits.split_examples(decoded, config)
    )
    if decoded.index is not None:
        for columns in by_split.values():  # in place of arrays, which they are read like
            columns["image"] = cast(np.ndarray, decoded.index.take(columns["image"]))
    elif arrays:
        for columns in by_split.values():
            columns["image"] = cast(np.ndarray, taken.TakenRows(arrays, columns["image"]))
    places, info, made = origins.taken(by_split), dict(decoded.info), None
    one_text = decoded.kind == "stream" or (decoded.kind == "text" and tokenizer is not None and tokenizer.stream)
    if decoded.kind == "text" and not one_text:
        info |= _duplicates(by_split, decoded)
    if tokenizer is not None and (one_text or decoded.kind == "text"):
        made = tokenization.build_tokenizer(tokenizer, iter(_training_texts(by_split["train"])))
    if one_text:
        assert not isinstance(made, Ngrams)  # which are for examples
        features, encoded = encode.encode_stream(by_split, config, tokenizer, made, info)
    elif decoded.kind == "text":
        features, encoded = encode.encode_texts(decoded, by_split, config, tokenizer, made, info)
    else:
        features, encoded = encode.encode_examples(decoded, by_split, config, info)
    checks.note_findings(info, encoded, features, config, origins.names(decoded.origins, places))
    text = made.to_str(pretty=True) if made is not None else None
    cache.write_dataset(
        folder, features, encoded, info, text, keep=lambda at: origins.write(at, decoded.origins, places)
    )


def _refuse_examples(tokenizer: tokenization.Spec | None) -> None:
    if tokenizer is not None and not tokenizer.stream:
        raise DataError(
            "this is one long text, not texts that are examples",
            where="data",
            hint="recipe=gpt_lm learns to write it; data=csv data.text=COLUMN holds texts",
        )


def _refer_to_tokens(folder: Path, decoded: Decoded, config: Data, tokenizer: tokenization.Spec | None) -> None:
    """Write what is known of ready-made tokens into a cache folder; they stay where they are."""
    by_split, info = splits.split_tokens(decoded, config), dict(decoded.info)
    made = tokenization.build_tokenizer(tokenizer, iter(())) if tokenizer is not None else None
    assert not isinstance(made, Ngrams)  # which are for examples
    features, arrays, outside = encode.encode_tokens(by_split, tokenizer, made, info)
    text = made.to_str(pretty=True) if made is not None else None
    cache.write_dataset(folder, features, arrays, info, text, outside=outside)


def _with_layout(dataset: Dataset, batches: BatchOptions, config: Data) -> Dataset:
    """The data as batches see it; the arrays on disk serve any length of windows."""
    if batches.documents and dataset.features.kind == "stream" and "inputs" in dataset.splits["train"]:
        dataset = documents.packed(dataset, batches.block, batches.end_token, getattr(config, "format", None))
    layout, features = choose_layout(dataset.features, dataset.splits, batches), dataset.features
    if isinstance(layout, Windows):
        _check_windows(dataset, layout.block)
    if isinstance(layout, Windows | Packed):
        features = dataclasses.replace(features, shape=(layout.block,))
    return dataclasses.replace(dataset, features=features, layout=layout)


def _check_windows(dataset: Dataset, block: int) -> None:
    for split, columns in dataset.splits.items():
        length, least = len(columns["inputs"]), block + 1 if split == "train" else 2
        if length < least:
            raise DataError(
                f"the {split} text has {length} tokens, {least} are needed for one window and its targets",
                where=f"data.{split}",
                hint="give more text, or a smaller recipe.block",
            )


def clean(config: Data, *, regression: bool = False, tokenizer: tokenization.Spec | None = None) -> int:
    """Delete the cache of a configuration; gives the bytes freed."""
    folder = cache.cache_folder(config, regression=regression, tokenizer=tokenizer)
    size = disk_size(folder)
    sums.forget(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size


def _training_texts(columns: Columns) -> Iterator[str]:
    for name in ("document", "text", "text_pair"):
        yield from map(str, columns.get(name, ()))


def _duplicates(by_split: dict[str, Columns], decoded: Decoded) -> dict[str, Any]:
    """What is found of texts that occur more than once."""
    from bigctl.data.text import duplicates

    tagged = decoded.target.kind == TOKEN_CLASS  # equal sentences have equal tags, more or less
    return {"duplicates": duplicates.report(by_split, Target(NONE) if tagged else decoded.target)}
