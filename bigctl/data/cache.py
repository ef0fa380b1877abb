"""Prepared data on this disk: one folder a data set and form, with its arrays, its tokenizer and `meta.json`.

A folder is made whole under a temporary name and renamed into place, so it is there or it is not. Its `meta.json` holds
the sha256 of every array; a damaged folder is found when it is opened.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from bigctl.cache_root import cache_root
from bigctl.config.schema import Data
from bigctl.data import catalog, in_place, taught
from bigctl.data.dataset import SPLITS, Dataset, Features
from bigctl.data.files import file_index, remote
from bigctl.data.pictures import packs, sums
from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.encoded_images import EncodedImages
from bigctl.data.pictures.taken import TakenRows
from bigctl.data.sources.decoded import Columns
from bigctl.data.text import token_shards, tokenization
from bigctl.data.text.encoding import Texts
from bigctl.data.text.token_shards import Part, TokenShards
from bigctl.errors import DataError
from bigctl.files import disk_size, sha256, temporary_name, write_text

TOKENIZER = "tokenizer.json"

_FORMAT = 3  # raise it whenever decoding, splitting or encoding change: older caches are then left alone

_RENAMED = {"second": "segment_start"}
"""Columns that have another name in memory than on disk, where names belong to the fingerprint of data."""

_ABANDONED = 86400.0
"""Age at which what a preparation left behind half made is taken to be nobody's [s]."""

_SOUND, _LARGE = "sound.json", 2**26
"""Where it is kept which files were whole when they were read last, of sets of at least so many bytes."""

_ENCODED = "inputs_"
"""How columns begin that are of pictures that stay where they are."""

_DIGESTS = re.compile(r"-[0-9a-f]{16}(-[0-9a-f]{8})*$")


def cache_folder(config: Data, *, regression: bool = False, tokenizer: tokenization.Spec | None = None) -> Path:
    """The folder that belongs to this configuration and the present state of its source; it need not exist.

    Texts as tokens have the name of the texts as they are, and a second digest.
    """
    config = remote.local(config)
    rule: list[Any] = [config.split_seed, config.train, config.validation, config.test]
    rule += [config.validation_fraction, config.test_fraction, config.deduplicate]
    rule += [] if config.fold is None else [config.fold, config.fold_count]
    identity = [_FORMAT, config.kind, catalog.source(config).identity(config), rule, regression]
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    name = getattr(config, "name", None) or getattr(config, "dataset", None) or Path(getattr(config, "path", "")).stem
    label = "".join(c if c.isalnum() or c in "-_." else "_" for c in str(name))[:40]
    plain = f"{label or config.kind}-{digest[:16]}"
    if tokenizer is not None:
        plain += f"-{hashlib.sha256(json.dumps(tokenizer.identity(), sort_keys=True).encode()).hexdigest()[:8]}"
    return cache_root() / "data" / plain


# ------------------------------------------------------------------------------------------------- reading and writing


def write_dataset(
    folder: Path,
    features: Features,
    arrays: dict[str, Columns],
    info: dict[str, Any],
    tokenizer: str | None = None,
    *,
    outside: Mapping[str, TokenShards] | None = None,
    keep: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write a prepared data set; `keep` puts files beside it that are no part of it, and `outside` are columns
    `inputs` that stay where they are.

    Raises:
        DataError: where there is no room for it, or the folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(folder)
        temporary.mkdir()
    except OSError as error:
        raise cannot_store(folder, error) from error
    on_disk = {name: stored for stored, name in _RENAMED.items()}
    try:
        digests = {}
        for split, columns in arrays.items():
            for name, values in _on_disk(columns).items():
                file = temporary / f"{split}.{on_disk.get(name, name)}.npy"
                if isinstance(values, TakenRows):
                    digests[file.name] = values.save(file)
                    continue
                np.save(file, values, allow_pickle=False)
                digests[file.name] = sha256(file)
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer, encoding="utf-8")
        meta = _meta(features, digests, info)
        if encoded := {split: each.to_json() for split, each in _encoded(arrays).items()}:
            meta["encoded"] = encoded
        if outside is not None:
            meta["in_place"] = {split: shards.to_json() for split, shards in outside.items()}
        _write_meta(temporary, meta)
        keep(temporary)
        _put(temporary, folder, meta["fingerprint"])
    except OSError as error:
        raise cannot_store(folder, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def finish_shards(
    work: Path,
    folder: Path,
    features: Features,
    files: dict[str, str],
    info: dict[str, Any],
    shards: Mapping[str, Sequence[Mapping[str, str | int]]],
) -> None:
    """Put a set in place whose files are written already, their tokens in shards.

    Args:
        work: where it was made.
        folder: where it belongs.
        features, info: of the set.
        files: digests of its arrays, those of tokens being what they would be as one array each.
        shards: the files with the tokens of each split.

    Raises:
        OSError: where there is no room.
    """
    meta = _meta(features, files, info) | {"shards": {split: [dict(s) for s in each] for split, each in shards.items()}}
    _write_meta(work, meta)
    _keep_sound(work, _digests(meta))
    _put(work, folder, meta["fingerprint"])


def _meta(features: Features, files: dict[str, str], info: dict[str, Any]) -> dict[str, Any]:
    features_json = features.to_json()
    return {"schema": _FORMAT, "features": features_json, "files": files, "info": info, "prepared": time.time()}


def _write_meta(folder: Path, meta: dict[str, Any]) -> None:
    meta["fingerprint"] = _fingerprint(meta)
    (folder / "meta.json").write_text(json.dumps(meta, indent=1))


def _put(temporary: Path, folder: Path, fingerprint: str) -> None:
    with _exclusive(folder.parent / ".lock"):
        present = read_dataset(folder)
        # Another process may have been quicker, and be reading what it made: equal data stays where it is.
        if present is None or present.fingerprint != fingerprint or in_place.lost(present):
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)


def _digests(meta: dict[str, Any]) -> dict[str, str]:
    """Of all files of a set."""
    shards = meta.get("shards", {})
    found = {name: digest for name, digest in meta["files"].items() if not _in_shards(name, shards)}
    return found | {str(shard["file"]): str(shard["sha256"]) for each in shards.values() for shard in each}


def _in_shards(name: str, shards: Mapping[str, Any]) -> bool:
    return any(shards[split] and name == f"{split}.inputs.npy" for split in shards)


def _sound(folder: Path, digests: Mapping[str, str]) -> bool:
    """Whether every file has its digest. Files of a large set that did not change since that was found out are not read
    again, unless `file_index` is distrusted. Raises OSError."""
    stamps = {name: file_index.stamp(folder / name) for name in digests}
    large = sum(stamp[0] for stamp in stamps.values()) >= _LARGE
    known: dict[str, Any] = {}
    if large and file_index.trusted():
        with contextlib.suppress(OSError, ValueError):
            known = dict(json.loads((folder / _SOUND).read_text(encoding="utf-8")))
    unknown = [name for name, digest in digests.items() if known.get(name) != [*stamps[name], digest]]
    if not all(sha256(folder / name) == digests[name] for name in unknown):
        return False
    if large and unknown:
        with contextlib.suppress(OSError):  # somebody else's folder
            _keep_sound(folder, digests)
    return True


def _keep_sound(folder: Path, digests: Mapping[str, str]) -> None:
    found = {name: [*file_index.stamp(folder / name), digest] for name, digest in digests.items()}
    write_text(folder / _SOUND, json.dumps(found))


def trusted_digests(folder: Path) -> dict[str, str]:
    """Of the files of a large set, which is opened without reading those that seem not to have changed."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        digests = _digests(json.loads((folder / "meta.json").read_text()))
        if sum((folder / name).stat().st_size for name in digests) >= _LARGE:
            return digests
    return {}


def forget_sound(folder: Path) -> None:
    """Have the files of a set read when it is opened next."""
    with contextlib.suppress(OSError):
        (folder / _SOUND).unlink(missing_ok=True)


def read_dataset(folder: Path) -> Dataset | None:
    """The data set in a cache folder, or None where any of it is missing or damaged."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        if meta["schema"] != _FORMAT or meta["fingerprint"] != _fingerprint(meta):
            return None
        by_split: dict[str, Columns] = {split: {} for split in SPLITS}
        if not _sound(folder, _digests(meta)):
            return None
        for name in meta["files"]:
            if _in_shards(name, meta.get("shards", {})):
                continue
            split, column, _ = name.split(".")
            by_split[split][_RENAMED.get(column, column)] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
        for split, values in meta.get("encoded", {}).items():
            named = [name for name in by_split[split] if name.startswith(_ENCODED)]
            own = {name.removeprefix(_ENCODED): by_split[split].pop(name) for name in named}
            by_split[split]["inputs"] = cast(np.ndarray, EncodedImages.stored(own, values, meta["fingerprint"], split))
        if not all(pack.is_dir() for pack in _packs(meta)):
            return None
        features = Features.from_json(meta["features"])
        vocab = (features.tokenizer or {}).get("vocab_size")
        for split, parts in meta.get("in_place", {}).items():  # in place of arrays, which they are read like
            by_split[split]["inputs"] = cast(np.ndarray, TokenShards.from_json(parts, vocab))
        for split, files in meta.get("shards", {}).items():
            if files:
                by_split[split]["inputs"] = cast(np.ndarray, TokenShards([_part(folder, f) for f in files], vocab))
        if features.tokenizer and sha256(folder / TOKENIZER) != features.tokenizer["sha256"]:
            return None
        texts = {split: _take_texts(columns) for split, columns in by_split.items()}
        return Dataset(by_split, features, meta["fingerprint"], meta["info"], str(folder), texts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _encoded(arrays: Mapping[str, Columns]) -> dict[str, EncodedImages]:
    """The pictures of each split that stay in their files."""
    found = {split: cast(object, columns.get("inputs")) for split, columns in arrays.items()}
    return {split: images for split, images in found.items() if isinstance(images, EncodedImages)}


def _on_disk(columns: Columns) -> Columns:
    """The arrays of a split, of pictures that stay in their files what is known of these."""
    images = columns.get("inputs")
    if not isinstance(images, EncodedImages):
        return columns
    others = {name: values for name, values in columns.items() if name != "inputs"}
    return {**{f"{_ENCODED}{name}": values for name, values in images.columns().items()}, **others}


def _part(folder: Path, shard: Mapping[str, Any]) -> Part:
    """A file of tokens of a set, which is known to be whole."""
    file, dtype = folder / shard["file"], str(shard["dtype"])
    status = file.stat()
    count = status.st_size // np.dtype(dtype).itemsize
    return Part(str(file), dtype, 0, 0, count, status.st_size, status.st_mtime_ns, shard["sha256"])


def _take_texts(columns: Columns) -> tuple[Texts, ...]:
    """The texts themselves, moved out of the columns that a model sees."""
    found: list[Texts] = []
    while f"text{len(found)}" in columns:
        name = f"text{len(found)}"
        found.append(Texts(columns.pop(name), columns.pop(f"{name}_offsets")))
    return tuple(found)


def _fingerprint(meta: dict[str, Any]) -> str:
    untold = {
        f"{split}.{_ENCODED}{name}.npy"
        for split, values in meta.get("encoded", {}).items()
        for name in picture_stores.untold(values)
    }
    content = [meta["features"], {file: digest for file, digest in meta["files"].items() if file not in untold}]
    if "encoded" in meta:
        content.append({split: values["form"] for split, values in meta["encoded"].items()})
    if "in_place" in meta:
        content.append({split: token_shards.fingerprint(parts) for split, parts in meta["in_place"].items()})
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cannot_store(folder: Path, error: OSError, *, kept: bool = False) -> DataError:
    """What to say where there is no room; `kept` says that the next start goes on with what is there."""
    hint = "free some space, or set BIGCTL_CACHE_DIR to a folder that can be written"
    hint = f"what was prepared is kept for the next start: {hint}" if kept else hint
    return DataError(f"cannot store prepared data: {error.strerror or error}", where=str(folder.parent), hint=hint)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    import fcntl

    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# ------------------------------------------------------------------------------------------------------ all of them


@dataclass(frozen=True)
class Prepared:
    """One cache folder. Several of them have one label where a data set was prepared with different splits or sizes.

    Attributes:
        label: name of the data set or stem of the file, the folder's name without its digest.
        when: seconds since the epoch, 0 where the folder is damaged.
    """

    label: str
    path: Path
    bytes: int
    kind: str
    when: float


def prepared() -> list[Prepared]:
    """Every cache folder, damaged ones among them, sorted by label."""
    found = []
    for folder in _folders():
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            kind, when = str(meta["features"]["kind"]), float(meta["prepared"])
        except (OSError, ValueError, KeyError, TypeError):
            kind, when = "damaged", 0.0
        found.append(Prepared(_DIGESTS.sub("", folder.name), folder, disk_size(folder), kind, when))
    return sorted(found, key=lambda p: (p.label, -p.when))


def clean_all() -> int:
    """Delete every cache folder, what interrupted preparations left and what teachers said; gives the bytes freed."""
    freed = 0
    others = [cache_root() / "data" / "listings", packs.root(), sums.root(), taught.root()]
    for folder in [*_folders(), *_leftovers(), *others]:
        freed += disk_size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        freed -= disk_size(folder)
    return freed


def sweep_packs(removed: Sequence[Path]) -> int:
    """Delete what was made of files without random access for prepared sets, folders that are still there and will be
    removed, unless another one refers to it as well; gives the bytes freed."""
    gone = {Path(folder) for folder in removed}
    asked = set().union(*(_packs_of(folder) for folder in gone))
    asked -= set().union(*(_packs_of(folder) for folder in _folders() if folder not in gone))
    freed = 0
    for folder in asked:
        freed += disk_size(folder)
        shutil.rmtree(folder, ignore_errors=True)
        freed -= disk_size(folder)
    return freed


def _packs_of(folder: Path) -> set[Path]:
    """The packs that a prepared set refers to."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return _packs(json.loads((folder / "meta.json").read_text(encoding="utf-8")))
    return set()


def _packs(meta: dict[str, Any]) -> set[Path]:
    held = {Path(file[0]).parent for values in meta.get("encoded", {}).values() for file in values.get("files", ())}
    return {place for place in held if place.parent == packs.root()}


def _folders() -> Iterator[Path]:
    root = cache_root() / "data"
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if (folder / "meta.json").is_file() and not folder.name.startswith("."):
            yield folder


def _leftovers() -> Iterator[Path]:
    root = cache_root() / "data"
    for folder in root.glob(".*-*.*") if root.is_dir() else []:
        if folder.is_dir() and folder.stat().st_mtime < time.time() - _ABANDONED:
            yield folder
