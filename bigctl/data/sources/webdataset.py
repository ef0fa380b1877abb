"""Pictures in tar shards (`webdataset`), decoded while training or before it: an index says where each of them is.

What tells the class is a file beside the picture (`.cls`, `.txt`), a field of a `.json` there, or the folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigctl import memory
from bigctl.cache_root import cache_root
from bigctl.config import schema
from bigctl.data.dataset import Features
from bigctl.data.files import paths
from bigctl.data.pictures import stores as picture_stores
from bigctl.data.pictures.stores import Held, Ranges, Window
from bigctl.data.sources import content, image_decoding, image_index, tar_shards, text_files
from bigctl.data.sources.decoded import Decoded
from bigctl.data.sources.image_index import Wanted
from bigctl.data.sources.tar_shards import Example, Member
from bigctl.data.sources.text_rows import short
from bigctl.data.sources.unlabelled import Unlabelled
from bigctl.errors import DataError
from bigctl.files import expanded, write_text

FOLDER, CLASS, JSON, TEXT = "folder", "cls", "json", "txt"
_LARGEST = 2**20
"""Bytes of a file that tells a class."""
_PREDICTED = 256
"""Encoded pictures that are in memory at once, of those that are predicted."""

Label = int | str


def identity(config: schema.Webdataset) -> object:
    """What the decoded arrays depend on: names, sizes and times of the shards, and keys that say what they hold."""
    shards = {split: shards_of(path) for split, path in _paths(config).items()}
    found: dict[str, Any] = {"shards": {split: _stamps(own) for split, own in shards.items()}}
    names = ("image_size", "channels", "image", "label", "background")
    found |= {name: getattr(config, name) for name in names} | {"names": paths.file_digest(config.names_file)}
    found["on_bad"] = "skip" if config.on_bad == "skip" else "stop"  # as sets that are there have it
    found["resize"] = image_decoding.STRETCH if config.resize in image_decoding.AS_EVER else config.resize
    if _is_streamed(config, shards["train"]):
        found["streamed"] = {split: [os.path.abspath(file) for file in own] for split, own in shards.items()}
    return found


def files(config: schema.Webdataset) -> Iterator[tuple[str, Path]]:
    """The shards, each with the key that leads to it. Raises DataError where there are none."""
    for split, path in _paths(config).items():
        yield from (("data.path" if split == "train" else f"data.{split}_path", file) for file in shards_of(path))


def decode(config: schema.Webdataset, regression: bool) -> Decoded:
    """The pictures of all shards, or where they are.

    Raises:
        DataError: a shard is missing, damaged or no tar archive; a member or a class cannot be used.
    """
    shards = {split: shards_of(path) for split, path in _paths(config).items()}
    found = {split: _read(own, config) for split, own in shards.items()}
    for split, part in found.items():
        if not part.labels:
            raise DataError("there are no pictures", where=_paths(config)[split], hint="is it the right file?")
    classes, labels = _classes(found, config)
    size = (config.image_size[0], config.image_size[1]) if config.image_size else None
    skip, streamed = config.on_bad == "skip", _is_streamed(config, shards["train"])
    wanted = Wanted(size, config.channels, config.background, config.resize, skip, config.bad_limit, streamed)
    whole, bad = _joined(list(found.values()))
    image_decoding.refuse(dict(bad), bad if skip else None, len(whole.sizes))
    images, index = image_index.read_ranges(whole, wanted, bad)
    splits = image_index.by_split(images, labels, bad)
    starts = np.cumsum([0, *(len(part.labels) for part in found.values())])
    names = {
        split: [whole.name(row) for row in range(start, start + len(part.labels))]
        for (split, part), start in zip(found.items(), starts.tolist(), strict=False)
    }
    info: dict[str, Any] = {
        "source": "webdataset",
        "shards": {split: len(own) for split, own in shards.items()},
        "images": {split: len(columns["label"]) for split, columns in splits.items()},
        "image_shape": list((images if index is None else index).shape[1:]),
        "label": found["train"].rule,
        "ignored_files": sum(part.ignored for part in found.values()),
        **image_index.left_out(bad, len(whole.sizes)),
    }
    return Decoded("image", splits, classes, info, origins=image_index.origins(names, bad), index=index)


def read_for_prediction(path: Path, config: schema.Webdataset, features: Features) -> Unlabelled:
    """The pictures of a shard, resized to what the model takes; examples without one are left out. Raises DataError."""
    held = tar_shards.held(path)
    height, width, channels = features.shape
    found = [(example, member) for example, member in _pictures(held, config) if member is not None]
    memory.require(len(found) * height * width * channels, f"{len(found):,} pictures", where=str(path))
    images = np.zeros((len(found), height, width, channels), np.uint8)
    errors: dict[int, DataError] = {}
    with open(held.path, "rb") as stream:
        for first in range(0, len(found), _PREDICTED):
            members = [member for _, member in found[first : first + _PREDICTED]]
            contents = [
                b"" if isinstance(member, DataError) else os.pread(stream.fileno(), member.size, member.start)
                for member in members
            ]
            names = [f"{held.shown}:{each.where if isinstance(each, DataError) else each.name}" for each in members]
            given = (height, width), channels, names, config.background, config.resize
            images[first : first + len(members)], wrong = image_decoding.decode_each(contents, *given)
            wrong |= {place: member for place, member in enumerate(members) if isinstance(member, DataError)}
            errors |= {first + place: error for place, error in wrong.items()}
    notes = () if found else (f"{path}: there are no pictures in it",)
    return Unlabelled(images, errors=errors, notes=notes)


def read_column(path: Path, config: schema.Webdataset, name: str) -> list[Any] | None:
    """What the pictures of a shard are called, without their suffixes, as column `id`; None for any other column.
    Raises DataError."""
    if name != "id":
        return None
    return [example.name for example, member in _pictures(tar_shards.held(path), config) if member is not None]


def _pictures(held: Held, config: schema.Webdataset) -> Iterator[tuple[Example, Member | DataError | None]]:
    """The examples of a shard, each with its picture, what is wrong with that, or nothing."""
    for example in tar_shards.examples(held):
        try:
            yield example, picture_of(example, config.image)
        except DataError as error:
            yield (
                example,
                DataError(error.message, where=f"{held.shown}:{error.where or example.name}", hint=error.hint),
            )


def _paths(config: schema.Webdataset) -> dict[str, str]:
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    return {split: path for split, path in given.items() if path}


def shards_of(path: str) -> list[Path]:
    """The shards that a path means, in order. Raises DataError where one of them is missing."""
    found: list[Path] = []
    for each in [path] if expanded(path).exists() else paths.braces(path):
        given = expanded(each)
        own = text_files.matching(each)
        named = (
            own if own == [given] else [file for file in own if content.suffix_of(file) in schema.Webdataset.suffixes]
        )
        if not named:
            raise DataError(f"none of {len(own)} files there is a tar archive by its name", where=each, hint="*.tar")
        found += named
    return found


def _stamps(shards: Sequence[Path]) -> list[list[str | int]]:
    """Names, sizes and times of shards. Raises DataError where one is missing."""
    try:
        return [[file.name, (status := file.stat()).st_size, status.st_mtime_ns] for file in shards]
    except OSError as error:
        raise DataError(f"a shard cannot be read: {error.strerror}", where=str(error.filename)) from None


# --------------------------------------------------------------------------------------------------- how they are kept


def _is_streamed(config: schema.Webdataset, shards: Sequence[Path]) -> bool:
    """Whether pictures stay encoded: as is said, or by what all shards are likely to take, judged by the first."""
    if config.decoding is not None:
        return config.decoding == schema.DECODE_STREAM
    pictures, height, width = _beginning(shards, config.image)
    if config.image_size:
        height, width = config.image_size
    return pictures * height * width * (config.channels or 3) > image_index.FEW


def _beginning(shards: Sequence[Path], image: str | None) -> tuple[int, int, int]:
    """About how many pictures there are, and the height and width of the first one; kept while shards are the same."""
    known = json.dumps([_stamps(shards), [os.path.abspath(file) for file in shards], image])
    kept = cache_root() / "data" / "listings" / f"{hashlib.sha256(os.fsencode(known)).hexdigest()[:16]}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        pictures, height, width = map(int, json.loads(kept.read_text(encoding="utf-8")))
        return pictures, height, width
    held = tar_shards.held(shards[0])
    pictures, first = 0, None
    for example in tar_shards.examples(held):
        with contextlib.suppress(DataError):
            member = picture_of(example, image)
            pictures, first = pictures + (member is not None), first or member
    sizes = [file.stat().st_size for file in shards]
    height = width = 0
    if first is not None:
        with contextlib.suppress(DataError, OSError), open(held.path, "rb") as stream:
            height, width = shape_of(stream.fileno(), first)
    found = [-(-pictures * sum(sizes) // max(1, sizes[0])), height, width]
    with contextlib.suppress(OSError, UnicodeError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, json.dumps(found))
    return found[0], height, width


def shape_of(descriptor: int, member: Member) -> tuple[int, int]:
    """Height and width of a picture in an open archive. Raises DataError."""
    window = io.BufferedReader(Window(descriptor, member.start, member.size))
    return image_decoding.header(window, member.name)[0]


# ----------------------------------------------------------------------------------------------------------- one split


@dataclass(frozen=True)
class _Split:
    """The pictures of one split, those that cannot be used among them.

    Attributes:
        ranges: where they are.
        labels: what tells the class of each.
        bad: what is wrong with some of them, by their place.
        rule: what tells the classes.
        ignored: files beside pictures that tell nothing.
    """

    ranges: Ranges
    labels: list[Label]
    bad: dict[int, DataError]
    rule: str
    ignored: int


def _read(shards: Sequence[Path], config: schema.Webdataset) -> _Split:
    parts: list[Ranges] = []
    labels: list[Label] = []
    bad: dict[int, DataError] = {}
    rule, ignored = config.label or "", 0
    for file in shards:
        held = tar_shards.held(file)
        names, starts, sizes = list[bytes](), list[int](), list[int]()
        with open(held.path, "rb") as stream:
            for example in tar_shards.examples(held):
                member, label = Member(example.name, 0, 0), 0 if not labels else labels[-1]
                try:
                    found = picture_of(example, config.image)
                    if found is None:
                        ignored += len(example.fields)
                        continue
                    member, rule = found, rule or rule_of(example, stream.fileno())
                    label = _label(example, rule, stream.fileno())
                except DataError as error:
                    where = f"{held.shown}:{error.where or example.name}"
                    bad[len(labels)] = DataError(error.message, where=where, hint=error.hint)
                names.append(os.fsencode(member.name))
                starts.append(member.start)
                sizes.append(member.size)
                labels.append(label)
        parts.append(picture_stores.in_one(held, names, starts, sizes))
    return _Split(picture_stores.joined(parts), labels, bad, rule, ignored)


def _joined(parts: Sequence[_Split]) -> tuple[Ranges, dict[int, DataError]]:
    """The pictures of all splits, one after the other, and those of them that are bad already."""
    bad: dict[int, DataError] = {}
    start = 0
    for part in parts:
        bad |= {start + place: error for place, error in part.bad.items()}
        start += len(part.labels)
    return picture_stores.joined([part.ranges for part in parts]), bad


def picture_of(example: Example, image: str | None) -> Member | None:
    """The picture of an example; None where it has none. Raises DataError where it is not clear which it is."""
    if example.problem:
        raise DataError(example.problem, hint="write the archive anew without it")
    found = [suffix for suffix in example.fields if f".{suffix.rpartition('.')[2]}" in image_decoding.IMAGE_SUFFIXES]
    if image is not None:
        found = [suffix for suffix in found if suffix == image.lower().lstrip(".")]
    if len(found) > 1:
        hint = f"data.image={found[0]}"
        raise DataError(f"there are several pictures: {', '.join(found)}", where=example.name, hint=hint)
    return example.fields[found[0]] if found else None


# ----------------------------------------------------------------------------------------------------------- the class


def rule_of(example: Example, descriptor: int) -> str:
    """What tells the classes, found out by the first example: cls, json.label, txt or folder. Raises DataError."""
    if CLASS in example.fields:
        return CLASS
    if JSON in example.fields and "label" in _object(example, JSON, descriptor):
        return f"{JSON}.label"
    if TEXT in example.fields:
        return TEXT
    if "/" in example.name:
        return FOLDER
    hint = f"data.label=SUFFIX or json.NAME says it; beside the picture there are {paths.some(sorted(example.fields))}"
    raise DataError("nothing tells the class", where=example.name, hint=hint)


def _label(example: Example, rule: str, descriptor: int) -> Label:
    """What tells the class of an example. Raises DataError where it is missing."""
    if rule == FOLDER:
        name = example.name.rpartition("/")[0].rpartition("/")[2]
        if not name:
            raise DataError("the picture is in no folder, which would tell its class", where=example.name)
        return name
    suffix, field = rule, ""
    while suffix not in example.fields and "." in suffix:
        suffix, _, last = suffix.rpartition(".")
        field = f"{last}.{field}" if field else last
    if suffix not in example.fields:
        beside = paths.some(sorted(example.fields))
        hint = f"beside the picture there are {beside}; data.label says what tells the class"
        raise DataError(
            f"there is no .{rule.partition('.')[0]}, which would tell the class", where=example.name, hint=hint
        )
    if not field:
        text = _text(example.fields[suffix], descriptor)
        return int(text) if text.removeprefix("-").isdecimal() and text.isascii() else text
    found = _object(example, suffix, descriptor).get(field)
    if not isinstance(found, int | str) or found == "":
        what = f"the field {field!r} is no number and no name of a class"
        raise DataError(what, where=example.fields[suffix].name, hint="data.label=json.NAME names another one")
    return str(found).lower() if isinstance(found, bool) else found


def _text(member: Member, descriptor: int) -> str:
    found = os.pread(descriptor, min(member.size, _LARGEST), member.start)
    try:
        text = found.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError("this is no text in UTF-8, so it tells no class", where=member.name) from None
    if not text or "\n" in text:
        what = "there is nothing in it" if not text else "there are several lines in it"
        raise DataError(f"{what}, so it tells no class", where=member.name, hint="data.label names another one")
    return text


def _object(example: Example, suffix: str, descriptor: int) -> dict[str, Any]:
    member = example.fields[suffix]
    try:
        found = json.loads(os.pread(descriptor, min(member.size, _LARGEST), member.start))
    except (ValueError, RecursionError) as error:
        raise DataError(f"cannot be read as JSON: {error}", where=member.name) from None
    if not isinstance(found, dict):
        raise DataError("this is no JSON object", where=member.name)
    return found


def _classes(found: dict[str, _Split], config: schema.Webdataset) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """The classes, which the training shards or a file of names decide, and labels, int32 [N]."""
    train = found["train"]
    if config.names_file is not None:
        classes, numbers = _named(config.names_file, found)
    else:
        present = {label for place, label in enumerate(train.labels) if place not in train.bad}
        whole = all(isinstance(label, int) for label in present)
        ordered = sorted(present, key=lambda label: (label,) if whole else paths.natural(str(label)))
        classes, numbers = tuple(map(str, ordered)), {label: number for number, label in enumerate(ordered)}
    if len(classes) == 1:
        hint = "two are needed; data.label says what tells the class"
        raise DataError(f"there is only one class, {short(classes[0])!r}", where=config.path, hint=hint)
    labels = {}
    for split, part in found.items():
        for place, label in enumerate(part.labels):
            if label not in numbers and place not in part.bad:
                what = f"class {short(str(label))!r} is not among the {len(classes)} classes {paths.some(classes, 6)}"
                hint = "correct it, or name all classes in data.names_file"
                raise DataError(what, where=part.ranges.name(place), hint=hint)
        labels[split] = np.array([numbers.get(label, 0) for label in part.labels], np.int32)
    return classes, labels


def _named(path: str, found: dict[str, _Split]) -> tuple[tuple[str, ...], dict[Label, int]]:
    """The classes of a file of names, and the number of each, by itself and by its name."""
    file = paths.require_file(expanded(path))
    classes = tuple(line.strip() for line in content.read_text(file)[0].strip().splitlines())
    if "" in classes:
        hint = "write the name of a class on each line"
        raise DataError("the line is empty", where=f"{path}:{classes.index('') + 1}", hint=hint)
    if twice := sorted({name for name in classes if classes.count(name) > 1}):
        raise DataError(f"classes are named twice: {paths.some(twice)}", where=path, hint="name each once")
    numbers: dict[Label, int] = {number: number for number in range(len(classes))}
    return classes, numbers | {name: number for number, name in enumerate(classes)}
