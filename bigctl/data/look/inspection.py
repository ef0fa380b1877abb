"""What files hold, guessed from a look at them: which kind of data they are, and the keys that read them.

Of a file no more than the first megabytes are read. Every guess is told with the key that says otherwise; what cannot
be guessed is asked for.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from bigctl.config import schema
from bigctl.data.files import paths
from bigctl.data.look import column_roles, row_beginnings
from bigctl.data.look.row_beginnings import Beginning
from bigctl.data.sources import arrow, conll, content, image_decoding, tar_shards, text_files, webdataset
from bigctl.data.sources.content import suffix_of
from bigctl.errors import DataError
from bigctl.files import expanded
from bigctl.formatting import size

_PICTURES, _FILES = 64, 200_000
_SIDES = (224, 192, 128, 96, 64, 48, 32)
_SPLITS = {
    **dict.fromkeys(("train", "training"), "path"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation_path"),
    **dict.fromkeys(("test", "testing"), "test_path"),
}
_RECIPES = {"conll": "bert_tag", "text": "gpt_lm", "tokens": "gpt_lm", "idx": "cnn_cls"}


@dataclass(frozen=True)
class Entry:
    """What a data set was found to be.

    Attributes:
        kind: of data, an option of the group `data`.
        keys: of `data`: those that the user gave, and those that were found.
        summary: what it holds, in one line.
        found: what was seen, one line each.
        assumed: what was guessed, one sentence each, with the key that says otherwise.
        training: words that train on it, such as "recipe=mlp_cls".
    """

    kind: str
    keys: dict[str, Any]
    summary: str
    found: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    training: tuple[str, ...] = ()


def inspect(path: str, given: Mapping[str, Any]) -> Entry:
    """Look at what a path means.

    Args:
        path: a file, a folder, or a pattern.
        given: keys of `data` that the user has typed, without "data."; they are not guessed.

    Raises:
        DataError: there is nothing, or nothing that is known; or it cannot be told what is to be predicted.
    """
    files = _files(path)
    kind = _kind(path, files)
    if kind == "image_folder":
        entry = _images(path, files, given)
    elif kind == "webdataset":
        entry = _shards(path, given)
    elif kind in ("csv", "tsv", "jsonl", "conll"):
        entry = _by_split(path, kind, [file for file in files if _family(file) == kind], given)
    elif kind == "arrow":
        splits, _ = arrow.files_by_split(path)
        entry = _table(kind, {"path": path}, row_beginnings.of_arrow(splits["train"][0]), given)
    elif kind == "parquet":
        file = next(file for file in files if _family(file) == kind)
        entry = _table(kind, {"path": path}, row_beginnings.of_parquet(file, path), given)
    else:
        entry = _whole(path, kind, [file for file in files if _family(file) == kind])
    return replace(entry, keys={**entry.keys, **given})


def _files(path: str) -> list[Path]:
    given = expanded(path)
    if not given.is_dir():
        return [
            file for each in ([path] if given.exists() else paths.braces(path)) for file in text_files.matching(each)
        ]
    found = (file for file in paths.walk(given) if not paths.hidden(file.name))
    return sorted(itertools.islice(found, _FILES))


def _kind(path: str, files: Sequence[Path]) -> str:
    known = [name for name, _ in Counter(map(_family, files)).most_common() if name]
    if "arrow" in known and any(file.name == "state.json" for file in files):
        return "arrow"  # the other files describe it
    if "image_folder" in known and expanded(path).is_dir():
        return "image_folder"  # whatever else lies beside the pictures
    if not known or known[0] == "image_folder":
        suffixes = paths.some(sorted({suffix_of(file) or file.name for file in files})) if files else "an empty folder"
        hint = "bigctl ls data lists the kinds; choose one with data=KIND data.path=..."
        raise DataError(f"no kind of data set is known by {suffixes}", where=path, hint=hint)
    return known[0]


def _family(file: Path) -> str:
    """The kind that a file's name tells, or an empty one."""
    suffix = suffix_of(file)
    if "-ubyte" in file.name:
        return "idx"
    if suffix in (".bin", ".idx"):
        return "tokens"
    kinds = (cls for cls in schema.components() if issubclass(cls, schema.Data) and suffix in cls.suffixes)
    return next((cls.kind for cls in kinds), "")


def _whole(path: str, kind: str, files: Sequence[Path]) -> Entry:
    """Data whose keys need no guess: long texts, tokens, idx files, formats of plugins."""
    total = sum(file.stat().st_size for file in files)
    what = f"{len(files):,} files" if len(files) > 1 else files[0].name
    training: tuple[str, ...] = (f"recipe={_RECIPES[kind]}",) if kind in _RECIPES else ()
    assumed = [f"the kind is {kind}, by the names of the files (data={kind})"]
    if kind == "tokens":
        training += ("recipe.tokenizer.type=gpt2",)
        assumed.append("the tokens are those of GPT-2 (recipe.tokenizer.type=gpt2, file, bytes or ids)")
    return Entry(kind, {"path": path}, f"{kind}: {what}, {size(total)}", (), tuple(assumed), training)


# ----------------------------------------------------------------------------------------------------- files of rows


def _by_split(path: str, kind: str, files: Sequence[Path], given: Mapping[str, Any]) -> Entry:
    """A file for each split, or one for all."""
    keys: dict[str, Any] = {"path": path}
    if expanded(path).is_dir() or len(files) > 1:
        named = {_SPLITS[file.name.split(".")[0].lower()]: str(file) for file in files if _is_split(file)}
        if len(files) == 1:
            named = {"path": str(files[0])}
        if len(named) < len(files) or "path" not in named:
            hint = "name one of them; data.validation_path and data.test_path take the files of other splits"
            raise DataError(f"{len(files)} files of kind {kind}, and a split is one file", where=path, hint=hint)
        keys = dict(sorted(named.items()))
    train = Path(keys["path"])
    if kind == "conll":
        return _tagged(keys, given)
    return _table(kind, keys, row_beginnings.of_file(expanded(str(train)), kind, given), given)


def _tagged(keys: dict[str, Any], given: Mapping[str, Any]) -> Entry:
    """CoNLL files, by the beginning of that of training."""
    file = expanded(str(keys["path"]))
    data, whole = content.read_beginning(file, row_beginnings.BEGINNING)
    columns = {name: str(given[name]) for name in ("tokens", "tags") if name in given}
    source = file if whole is None else data
    given_columns = given.get("columns")
    seen = conll.read_conll(source, given.get("encoding"), bad={}, columns=given_columns, name=str(file), **columns)
    sentences, words = len(seen.words), sum(map(len, seen.words))
    tags = [tag for tag, _ in Counter(tag for row in seen.tags for tag in row).most_common()]
    about = "" if whole is None else f"in the first {size(len(data))} "
    summary = f"{about}{sentences:,} sentences of {words:,} words with tags"
    assumed = [
        f"the {what} are in the {place} column (data.{key}=COLUMN)"
        for key, what, place in (("tokens", "words", "first"), ("tags", "tags", "last"))
        if key not in given
    ]
    found = (f"{len(tags):,} different tags: {paths.some(tags, 8)}",)
    return Entry("conll", keys, summary, found, tuple(assumed), (f"recipe={_RECIPES['conll']}",))


def _is_split(file: Path) -> bool:
    return file.name.split(".")[0].lower() in _SPLITS


def _table(kind: str, keys: dict[str, Any], seen: Beginning, given: Mapping[str, Any]) -> Entry:
    found = tuple(str(column) for column in seen.columns)
    rows = f"{'about ' if seen.cut else ''}{seen.total:,} rows"
    keys, assumed = {**keys, **seen.keys}, list(seen.reasons)
    if "tokens" in keys or "tokens" in given:
        return Entry(kind, keys, f"{rows} of words with tags", found, tuple(assumed), ("recipe=bert_tag",))
    if "labels" in keys or "labels" in given:
        text = column_roles.the_text(seen.columns, keys.get("labels", given.get("labels")), seen.source)
        assumed += [] if "text" in given else [f"the text is {text!r} (data.text=COLUMN)"]
        keys.setdefault("text", text)
        return Entry(kind, keys, f"{rows} of texts with several classes", found, tuple(assumed), ("recipe=ngram_cls",))
    if seen.image is not None or "image" in given:
        given = {"text": None, **given}
    roles = column_roles.find_roles(seen.columns, seen.looked_at, given, seen.source)
    assumed += roles.reasons
    keys |= {"label": roles.label} if "label" not in given else {}
    head = ("model.head=regression",) if roles.regression else ()
    target = f"; the target is {roles.label}" if roles.label else ", without labels"
    if image := given.get("image", seen.image):
        keys["image"] = image
        return Entry(kind, keys, f"{rows} of images{target}", found, tuple(assumed), ("recipe=cnn_cls", *head))
    if roles.text is not None:
        keys |= {"text": roles.text} if "text" not in given else {}
        recipe = "ngram_cls" if roles.label else "bert_mlm"
        return Entry(kind, keys, f"{rows} of texts{target}", found, tuple(assumed), (f"recipe={recipe}", *head))
    what = f"{rows} of {len(seen.columns) - 1} columns{target}"
    return Entry(kind, keys, what, found, tuple(assumed), ("recipe=mlp_cls", *head))


# ------------------------------------------------------------------------------------------------------------ images


def _images(path: str, files: Sequence[Path], given: Mapping[str, Any]) -> Entry:
    folder = expanded(path)
    pictures = [file for file in files if image_decoding.is_image_name(file)]
    keys: dict[str, Any] = {"path": path}
    assumed: list[str] = []
    inner = [file.relative_to(folder).parts for file in pictures]
    if any(len(parts) == 1 for parts in inner) and "labels_file" not in given:
        tables = [file for file in files if file.parent == folder and _family(file) in ("csv", "tsv", "jsonl")]
        if len(tables) != 1:
            hint = "put them into one folder a class, or name a file of labels with data.labels_file=FILE"
            raise DataError(f"no folder tells the class of {inner[0][-1]}", where=path, hint=hint)
        keys["labels_file"] = str(tables[0])
        assumed.append(f"classes are in {tables[0].name}, the only table beside the pictures (data.labels_file)")
    classes = Counter(parts[-2] for parts in inner if len(parts) > 1)
    stride = math.ceil(len(pictures) / _PICTURES)
    shapes = Counter(image_decoding.read_image(file).shape[:2] for file in pictures[::stride])
    found = [f"{name}: {count:,} pictures" for name, count in sorted(classes.items())[:20]]
    found += [f"... and {len(classes) - 20:,} more folders"] if len(classes) > 20 else []
    found += _sized(shapes, keys, given, assumed)
    total = size(sum(file.stat().st_size for file in pictures))
    what = f"{len(pictures):,} pictures, {total}" + (f", in {len(classes):,} folders" if classes else "")
    return Entry("image_folder", keys, what, tuple(found), tuple(assumed), ("recipe=cnn_cls",))


def _shards(path: str, given: Mapping[str, Any]) -> Entry:
    """Tar shards, of which the first is looked at."""
    shards = webdataset.shards_of(path)
    held = tar_shards.held(shards[0])
    keys: dict[str, Any] = {"path": path}
    shapes, rule, count, example = Counter[tuple[int, ...]](), "", 0, None
    with open(held.path, "rb") as stream:
        for each in tar_shards.examples(held):
            if each.problem or (picture := webdataset.picture_of(each, given.get("image"))) is None:
                continue
            example, count = example or each, count + 1
            rule = rule or given.get("label") or webdataset.rule_of(each, stream.fileno())
            if count <= _PICTURES:
                shapes[webdataset.shape_of(stream.fileno(), picture)] += 1
    if example is None:
        raise DataError("there are no pictures in the first shard", where=str(shards[0]), hint="is it the right file?")
    assumed = [] if "label" in given else [f"what tells the class is {rule} (data.label=SUFFIX, json.NAME or folder)"]
    found = [f"an example has {paths.some(sorted(example.fields))}", *_sized(shapes, keys, given, assumed)]
    more = f" in the first of {len(shards):,} shards" if len(shards) > 1 else ""
    what = f"{count:,} pictures{more}, {size(sum(file.stat().st_size for file in shards))}"
    return Entry("webdataset", keys, what, tuple(found), tuple(assumed), ("recipe=cnn_cls",))


def _sized(
    shapes: Counter[tuple[int, ...]], keys: dict[str, Any], given: Mapping[str, Any], assumed: list[str]
) -> list[str]:
    """What there is to say of the sizes of pictures; of several one is chosen."""
    if len(shapes) > 1 and "image_size" not in given:
        shorter = median(min(shape) for shape in shapes.elements())
        side = next((side for side in _SIDES if side <= shorter), _SIDES[-1])
        keys["image_size"] = [side, side]
        what = f"pictures are of {len(shapes)} sizes, such as {' and '.join(_sides(s) for s in list(shapes)[:2])}"
        assumed.append(f"{what}: they are resized to {side}x{side} (data.image_size=[HEIGHT,WIDTH])")
        return []
    return [f"pictures of {_sides(next(iter(shapes)))}"]


def _sides(shape: tuple[int, ...]) -> str:
    return re.sub(r", ", "x", str(tuple(shape[:2]))[1:-1])
