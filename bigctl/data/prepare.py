"""Source -> decoded array cache on disk -> memory-mapped `Dataset`.

A cache folder is made whole under a temporary name and renamed into place, so it is there or it is not. Its `meta.json`
holds the sha256 of every array; a damaged cache is found when it is opened, and made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.config.schema import Data
from bigctl.data import catalog, splits
from bigctl.data.dataset import SPLITS, Dataset, Features
from bigctl.data.sources.decoded import Columns, Decoded
from bigctl.data.text import encoding, tokenization
from bigctl.data.text.encoding import Texts
from bigctl.errors import DataError

TOKENIZER = "tokenizer.json"

_FORMAT = 3  # raise it whenever decoding, splitting or encoding change: older caches are then left alone


def cache_root() -> Path:
    """Where prepared data lives: $BIGCTL_CACHE_DIR, else bigctl/ in the user's cache folder."""
    own = os.environ.get("BIGCTL_CACHE_DIR")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "bigctl"


def prepare(
    config: Data,
    *,
    regression: bool = False,
    rebuild: bool = False,
    tokenizer: tokenization.Spec | None = None,
    stored: Path | None = None,
) -> Dataset:
    """The data set of a configuration, from the cache or newly decoded into it.

    Args:
        config: the `data` part of an experiment.
        regression: whether the target is real-valued.
        rebuild: decode again even where a cache exists.
        tokenizer: how text becomes numbers; None leaves texts as they are.
        stored: the tokenizer.json that a run has made before, which is then used and none is made.

    Raises:
        DataError: if the data cannot be found, fetched, decoded or stored.
    """
    folder = cache_folder(config, regression=regression, tokenizer=tokenizer)
    digest = tokenization.sha256(stored) if stored is not None and stored.is_file() else None
    for place in (folder, folder.with_name(f"{folder.name}-{digest[:8]}") if digest else None):
        if rebuild or place is None or not place.is_dir():
            continue
        dataset = _open(place)
        if dataset is None:
            print(f"data: the cache {place} is damaged; making it again", file=sys.stderr)
        elif digest in (None, (dataset.features.tokenizer or {}).get("sha256")):
            _check_target(dataset.features.classes, regression)
            return _in_windows(dataset, tokenizer)
        elif place is folder:
            folder = folder.with_name(f"{folder.name}-{digest[:8]}")  # made with a tokenizer of another version
    decoded = catalog.reader(config).decode(config, regression)
    if config.deduplicate:
        decoded = _deduplicated(decoded)
    _check_target(decoded.classes, regression)
    if decoded.kind == "stream" and tokenizer is not None and not tokenizer.stream:
        raise DataError(
            "this is one long text, not texts that are examples",
            where="data",
            hint="recipe=gpt_lm learns to write it; data=csv data.text=COLUMN holds texts",
        )
    by_split = splits.cut(decoded, config) if decoded.kind == "stream" else splits.make(decoded, config)
    info, made = dict(decoded.info), None
    if decoded.kind == "stream" or (decoded.kind == "text" and tokenizer is not None and tokenizer.stream):
        if tokenizer is not None:
            with_file = dataclasses.replace(tokenizer, file=stored) if digest else tokenizer
            made = tokenization.make(with_file, iter(_training_texts(by_split["train"])))
        features, arrays = _encode_stream(by_split, config, tokenizer, made, info)
    elif decoded.kind == "text":
        info |= _duplicates(by_split, decoded)
        if tokenizer is not None:
            with_file = dataclasses.replace(tokenizer, file=stored) if digest else tokenizer
            made = tokenization.make(with_file, iter(_training_texts(by_split["train"])))
        features, arrays = _encode_text(decoded, by_split, config, tokenizer, made, info)
    else:
        features, arrays = _encode(decoded, by_split, config)
    _report_missing_classes(arrays, features)
    _write(folder, features, arrays, info, made.to_str(pretty=True) if made is not None else None)
    dataset = _open(folder)
    if dataset is None:
        raise DataError("cannot be read back after it was written", where=str(folder), hint="check the disk")
    return _in_windows(dataset, tokenizer)


def _in_windows(dataset: Dataset, tokenizer: tokenization.Spec | None) -> Dataset:
    """One long text as the windows that a model sees; the arrays on disk serve any length of them."""
    if dataset.features.kind != "stream" or tokenizer is None or not tokenizer.block:
        return dataset
    for split, columns in dataset.splits.items():
        length, least = len(columns["inputs"]), tokenizer.block + 1 if split == "train" else 2
        if length < least:
            raise DataError(
                f"the {split} text has {length} tokens, {least} are needed for one window and its targets",
                where=f"data.{split}",
                hint="give more text, or a smaller recipe.block",
            )
    return dataclasses.replace(dataset, features=dataclasses.replace(dataset.features, shape=(tokenizer.block,)))


def _check_target(classes: Sequence[str] | None, regression: bool) -> None:
    if regression and classes is not None:
        raise DataError(
            "model.head=regression needs a real-valued target, this data has classes",
            where="model.head",
            hint="leave it out, or choose a table and its data.label",
        )


def cache_folder(config: Data, *, regression: bool = False, tokenizer: tokenization.Spec | None = None) -> Path:
    """The folder that belongs to this configuration and the present state of its source; it need not exist.

    Texts as tokens have the name of the texts as they are, and a second digest.
    """
    rule: list[Any] = [config.split_seed, config.train, config.validation, config.test]
    rule += [config.validation_fraction, config.test_fraction, config.deduplicate]
    identity = [_FORMAT, config.kind, catalog.reader(config).identity(config), rule, regression]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = getattr(config, "name", None) or getattr(config, "dataset", None) or Path(getattr(config, "path", "")).stem
    label = "".join(c if c.isalnum() or c in "-_." else "_" for c in str(name))[:40]
    plain = f"{label or config.kind}-{digest[:16]}"
    if tokenizer is not None:
        plain += f"-{hashlib.sha256(json.dumps(tokenizer.identity(), sort_keys=True).encode()).hexdigest()[:8]}"
    return cache_root() / "data" / plain


def clean(config: Data, *, regression: bool = False, tokenizer: tokenization.Spec | None = None) -> int:
    """Delete the cache of a configuration; gives the bytes freed."""
    folder = cache_folder(config, regression=regression, tokenizer=tokenizer)
    size = disk_size(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return size


def disk_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0


# ----------------------------------------------------------------------------------------------------------- encoding


def _encode(decoded: Decoded, by_split: dict[str, Columns], config: Data) -> tuple[Features, dict[str, Columns]]:
    """Columns as a model takes them; everything that is estimated is estimated on the training split alone."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    labels = {split: columns["label"] for split, columns in by_split.items()}
    if decoded.kind == "image":
        inputs = {split: columns["image"] for split, columns in by_split.items()}
        mean, std = _channel_statistics(inputs["train"])
        size = getattr(config, "image_size", None)
        features = Features(
            "image", inputs["train"].shape[1:], decoded.classes, mean, std, image_size=tuple(size) if size else None
        )
    elif decoded.kind == "table":
        from bigctl.data.table_encoder import TableEncoder

        plain = {s: {name: v for name, v in columns.items() if name != "label"} for s, columns in by_split.items()}
        encoder = TableEncoder.fit(plain["train"])
        inputs = {split: encoder.encode(columns) for split, columns in plain.items()}
        if decoded.classes is None:
            target = labels["train"].astype(np.float64)
            mean, std = (float(target.mean()),), (float(target.std()) or 1.0,)
        names = tuple(encoder.feature_names)
        features = Features("table", (len(names),), decoded.classes, mean, std, encoder.to_json(), names)
    else:
        raise DataError(f"data of kind {decoded.kind!r} cannot be prepared")
    kind = np.int32 if decoded.classes else np.float32
    arrays = {s: {"inputs": np.ascontiguousarray(inputs[s]), "label": labels[s].astype(kind)} for s in SPLITS}
    return features, arrays


def _encode_text(
    decoded: Decoded,
    by_split: dict[str, Columns],
    config: Data,
    tokenizer: tokenization.Spec | None,
    made: Any,
    info: dict[str, Any],
) -> tuple[Features, dict[str, Columns]]:
    """Texts as they are, and as tokens where there is a tokenizer; notes what was cut into `info`."""
    arrays: dict[str, Columns] = {split: {} for split in SPLITS}
    pairs = "text_pair" in by_split["train"]
    for split, columns in by_split.items():
        for number, name in enumerate(("text", "text_pair") if pairs else ("text",)):
            texts = Texts.of(columns[name].tolist())
            arrays[split] |= {f"text{number}": texts.content, f"text{number}_offsets": texts.offsets}
        arrays[split]["label"] = columns["label"].astype(np.int32)
    shape: tuple[int, ...] = ()
    described = None
    if tokenizer is not None:
        settings = tokenizer.settings
        assert isinstance(settings, schema.Tokenizer)
        shape = (settings.max_length,)
        digest = hashlib.sha256(made.to_str(pretty=True).encode()).hexdigest()
        described = tokenization.describe(made, settings, digest)
        for split, columns in by_split.items():
            other = columns["text_pair"].tolist() if pairs else None
            encoded = encoding.encode(made, columns["text"].tolist(), other, settings.max_length, settings.truncate)
            arrays[split] |= {"inputs": encoded.tokens, "offsets": encoded.offsets, "second": encoded.second}
            info.setdefault("cut", {})[split] = int(encoded.cut.sum())
            info.setdefault("unknown_tokens", {})[split] = round(encoded.unknown, 5)
    names = [n for n in (getattr(config, "text", None), getattr(config, "text_pair", None)) if n]
    features = Features(
        "text",
        shape,
        decoded.classes,
        tokenizer=described,
        pairs=pairs,
        columns=tuple(names) if pairs else tuple(names[:1]),
    )
    return features, arrays


def _encode_stream(
    by_split: dict[str, Columns], config: Data, tokenizer: tokenization.Spec | None, made: Any, info: dict[str, Any]
) -> tuple[Features, dict[str, Columns]]:
    """Documents as they are, and as one run of tokens where there is a tokenizer; notes their sizes into `info`."""
    arrays: dict[str, Columns] = {}
    described = None
    if tokenizer is not None:
        digest = hashlib.sha256(made.to_str(pretty=True).encode()).hexdigest()
        described = tokenization.describe(made, tokenizer.settings, digest)
    for split, columns in by_split.items():
        documents = columns["document" if "document" in columns else "text"].tolist()
        texts = Texts.of(documents)
        facts: dict[str, Any] = {"documents": len(documents), "bytes": len(texts.content)}
        facts["characters"] = sum(map(len, documents))
        arrays[split] = {"text0": texts.content, "text0_offsets": texts.offsets}
        arrays[split]["bytes"] = np.array([facts["bytes"]], np.int64)
        if made is not None:
            tokens = encoding.encode_stream(made, documents, boundaries=getattr(config, "boundaries", True))
            arrays[split]["inputs"] = tokens
            facts["tokens"] = len(tokens)
            unknown = tokenization.special(made).get("unk")
            missing = 0 if unknown is None else np.count_nonzero(tokens == unknown)
            info.setdefault("unknown_tokens", {})[split] = round(missing / max(1, len(tokens)), 5)
        for name, value in facts.items():
            info.setdefault(name, {})[split] = value
    return Features("stream", (), None, tokenizer=described), arrays


def _training_texts(columns: Columns) -> Iterator[str]:
    for name in ("document", "text", "text_pair"):
        yield from map(str, columns.get(name, ()))


def _deduplicated(decoded: Decoded) -> Decoded:
    """Each text once: of copies the first is kept, that of a test split before that of the training split."""
    from bigctl.data.text import duplicates

    if decoded.kind != "text":
        raise DataError("only texts can be deduplicated", where="data.deduplicate", hint="leave it out")
    seen: set[Any] = set()
    kept: dict[str, Columns] = {}
    dropped = {}
    for name in sorted(decoded.splits, key=lambda name: name.startswith("train")):  # training last
        columns = decoded.splits[name]
        new = np.zeros(len(columns["label"]), bool)
        for number, text_key in enumerate(duplicates.keys(columns)):
            new[number] = text_key not in seen
            seen.add(text_key)
        kept[name] = {column: values[new] for column, values in columns.items()}
        dropped[name] = int((~new).sum())
    splits = {name: kept[name] for name in decoded.splits}
    return dataclasses.replace(decoded, splits=splits, info={**decoded.info, "copies_dropped": dropped})


def _duplicates(by_split: dict[str, Columns], decoded: Decoded) -> dict[str, Any]:
    """What is found of texts that occur more than once, said on stderr where they cross splits."""
    from bigctl.data.text import duplicates

    found = duplicates.report(by_split, decoded.classes)
    for note in found.get("notes", ()):
        print(f"data: {note}", file=sys.stderr)
    return {"duplicates": found}


def _channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 [N, H, W, C] as numbers in [0, 1], by blocks of images."""
    total = np.zeros(images.shape[-1], np.int64)
    squares = np.zeros(images.shape[-1], np.int64)
    count = images.size // images.shape[-1]
    for start in range(0, len(images), 4096):
        block = images[start : start + 4096].astype(np.int64)
        total += block.sum((0, 1, 2))
        squares += np.square(block).sum((0, 1, 2))
    # In whole numbers, so that the variance of a constant channel is exactly 0 and not a rounding to divide by.
    variances = [(q * count - t * t) / count**2 for t, q in zip(total.tolist(), squares.tolist(), strict=True)]
    return tuple((total / count / 255.0).tolist()), tuple(v**0.5 / 255.0 or 1.0 for v in variances)


def _report_missing_classes(arrays: dict[str, Columns], features: Features) -> None:
    if not features.classes:
        return
    counts = {split: np.bincount(arrays[split]["label"], minlength=features.num_classes) for split in SPLITS}
    for split in ("validation", "test"):
        absent = [features.classes[c] for c in np.flatnonzero((counts[split] > 0) & (counts["train"] == 0))]
        if absent:
            raise DataError(
                f"class {absent[0]!r} is in the {split} split but not in the training split",
                where="data",
                hint="add training examples of it, or choose other splits",
            )


# ---------------------------------------------------------------------------------------------------------- the cache


def _write(
    folder: Path, features: Features, arrays: dict[str, Columns], info: dict[str, Any], tokenizer: str | None = None
) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.parent / f".{folder.name}.{os.getpid()}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
    except OSError as error:
        raise _cannot_store(folder, error) from error
    try:
        digests = {}
        for split, columns in arrays.items():
            for name, values in columns.items():
                file = temporary / f"{split}.{name}.npy"
                np.save(file, values, allow_pickle=False)
                digests[file.name] = _digest(file)
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        meta = {
            "schema": _FORMAT,
            "features": features.to_json(),
            "files": digests,
            "info": info,
            "prepared": time.time(),
        }
        meta["fingerprint"] = _fingerprint(meta)
        (temporary / "meta.json").write_text(json.dumps(meta, indent=1))
        with _exclusive(folder.parent / ".lock"):
            present = _open(folder)
            # Another process may have been quicker, and be reading what it made: equal data stays where it is.
            if present is None or present.fingerprint != meta["fingerprint"]:
                shutil.rmtree(folder, ignore_errors=True)
                temporary.rename(folder)
    except OSError as error:
        raise _cannot_store(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path) -> Dataset | None:
    """The data set in a cache folder, or None where any of it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["schema"] != _FORMAT or meta["fingerprint"] != _fingerprint(meta):
            return None
        by_split: dict[str, Columns] = {split: {} for split in SPLITS}
        for name, digest in meta["files"].items():
            if _digest(folder / name) != digest:
                return None
            split, column, _ = name.split(".")
            by_split[split][column] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        features = Features.from_json(meta["features"])
        if features.tokenizer and tokenization.sha256(folder / TOKENIZER) != features.tokenizer["sha256"]:
            return None
        texts = {split: _take_texts(columns) for split, columns in by_split.items()}
        return Dataset(by_split, features, meta["fingerprint"], meta["info"], str(folder), texts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _take_texts(columns: Columns) -> tuple[Texts, ...]:
    """The texts themselves, moved out of the columns that a model sees."""
    found: list[Texts] = []
    while f"text{len(found)}" in columns:
        name = f"text{len(found)}"
        found.append(Texts(columns.pop(name), columns.pop(f"{name}_offsets")))
    return tuple(found)


def _fingerprint(meta: dict[str, Any]) -> str:
    content = json.dumps([meta["features"], meta["files"]], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cannot_store(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot store prepared data: {error.strerror or error}",
        where=str(folder.parent),
        hint="free some space, or set BIGCTL_CACHE_DIR to a folder that can be written",
    )


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
