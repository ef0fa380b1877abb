"""A prepared data set as people look at it: columns with sample rows, images, texts and how long they are."""

from __future__ import annotations

import itertools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from bigctl import formatting
from bigctl.data import openings
from bigctl.data.dataset import SPLITS, Dataset
from bigctl.data.table_encoder import Numeric, TableEncoder
from bigctl.data.target import CLASSES, NUMBER, TOKEN_CLASS
from bigctl.data.text import words
from bigctl.data.text.encoding import Texts

Images = UInt8[np.ndarray, "n height width channels"]


@dataclass(frozen=True)
class Column:
    """One column of a table, by what the training split held, and its first values.

    Attributes:
        kind: "numeric" or "categorical".
        summary: mean and standard deviation, or the categories.
        missing: whether the training split misses some values.
        samples: values of the first training examples as text, "" for a missing one.
    """

    name: str
    kind: str
    summary: str
    missing: bool
    samples: tuple[str, ...]


def describe(dataset: Dataset) -> dict[str, Any]:
    """Sizes, classes, features and statistics, JSON-serialisable."""
    features, target = dataset.features, dataset.features.target
    splits: dict[str, Any] = {}
    for split in SPLITS:
        if features.kind == "stream":
            sizes = ("documents", "characters", "bytes", "tokens")
            found = {name: dataset.info[name][split] for name in sizes if split in dataset.info.get(name, {})}
            splits[split] = {"examples": dataset.size(split), **found}
            continue
        labels = dataset.splits[split]["label"]
        splits[split] = {"examples": dataset.size(split)}
        if target.kind == NUMBER:
            labels = target.restored(labels)
            spread = {"min": labels.min(), "mean": labels.mean(dtype=np.float64), "max": labels.max()}
            splits[split]["target"] = {name: float(value) for name, value in spread.items()}
        elif target.names:
            splits[split]["classes"] = target.counts(labels).tolist()
            if target.kind == CLASSES:
                splits[split]["without_class"] = int((~labels.any(1)).sum())
        if features.kind == "text":
            splits[split] |= _lengths(dataset, split)
    return {
        "kind": features.kind,
        "splits": splits,
        "target": target.kind,
        "classes": list(target.names) if target.names else None,
        "shape": list(features.shape),
        "feature_names": list(features.feature_names),
        "mean": list(features.mean),
        "std": list(features.std),
        "image_size": list(features.image_size) if features.image_size else None,
        "tokenizer": features.tokenizer,
        "pairs": features.pairs,
        "info": dataset.info,
        "fingerprint": dataset.fingerprint,
        "path": dataset.path,
    }


# ------------------------------------------------------------------------------------------------------------ tables


def columns(dataset: Dataset, count: int = 5) -> list[Column]:
    """The columns of a table as they were in its file, with the values of the first `count` training examples."""
    encoder = TableEncoder.from_json(dataset.features.encoder or {})
    rows = np.asarray(dataset.splits["train"]["inputs"][:count], np.float64)
    found, start = [], 0
    for column in encoder.columns:
        part = rows[:, start : start + len(column.features)]
        start += len(column.features)
        if isinstance(column, Numeric):
            absent = part[:, 1] > 0 if column.missing else np.zeros(len(part), bool)
            numbers = part[:, 0] * column.std + column.mean
            numbers[np.abs(numbers) <= 2.0**-23 * np.abs(part[:, 0] * column.std)] = (
                0.0  # all but a rounding of float32
            )
            spread = 0.0 if _is_constant(column, dataset, start - len(column.features)) else column.std
            samples = ["" if gone else f"{x:.4g}" for x, gone in zip(numbers, absent, strict=True)]
            found.append(
                Column(column.name, "numeric", f"{column.mean:.4g} ± {spread:.4g}", column.missing, tuple(samples))
            )
        else:
            names = [*column.categories, *(["<other>"] if column.other else []), *([""] if column.missing else [])]
            samples = [names[int(row.argmax())] if row.any() else "" for row in part]
            shown = ", ".join(column.categories[:4]) + (", ..." if len(column.categories) > 4 else "")
            summary = f"{len(column.categories)} values: {shown}"
            found.append(Column(column.name, "categorical", summary, column.missing, tuple(samples)))
    return found


def _is_constant(column: Numeric, dataset: Dataset, place: int) -> bool:
    """Whether a column has one value, which is kept with 1 for its standard deviation of 0."""
    return column.std == 1.0 and not dataset.splits["train"]["inputs"][:, place].any()


def targets(dataset: Dataset, count: int = 5) -> list[str]:
    """The targets of the first training examples: class names, or numbers."""
    return [dataset.features.target.text(label) for label in dataset.splits["train"]["label"][:count]]


# ------------------------------------------------------------------------------------------------------------- texts


def _lengths(dataset: Dataset, split: str) -> dict[str, Any]:
    """How long the texts of a split are, those of a pair together; in tokens as they are after cutting."""
    found: dict[str, Any] = {
        "characters": _spread(np.sum([characters(texts) for texts in dataset.texts[split]], axis=0))
    }
    lengths = dataset.layout.lengths(dataset.splits[split]) if dataset.layout is not None else None
    if lengths is not None:
        count = max(1, len(lengths))
        found["tokens"] = _spread(lengths)
        found["cut"] = dataset.info["cut"][split] / count
        found["unknown"] = dataset.info["unknown_tokens"][split]
    return found


def characters(texts: Texts) -> np.ndarray:
    """Characters (code points) of each text, int64 [N]."""
    begins = np.concatenate([[0], np.cumsum((texts.content & 0xC0) != 0x80, dtype=np.int64)])
    return np.diff(begins[texts.offsets])


def _spread(lengths: np.ndarray) -> dict[str, float]:
    if not len(lengths):
        return dict.fromkeys(("min", "median", "p95", "max"), 0)
    at = np.percentile(lengths, (0, 50, 95, 100), method="nearest")
    return {name: int(value) for name, value in zip(("min", "median", "p95", "max"), at, strict=True)}


def first_texts(dataset: Dataset, *, classes: int = 10, each: int = 2) -> list[tuple[str, list[str]]]:
    """The first training texts of the first classes, as (class name, texts); pairs are joined by " | "."""
    labels, target = dataset.splits["train"]["label"], dataset.features.target
    if target.kind == TOKEN_CLASS:
        rows = range(min(classes, dataset.size("train")))
        return [("", [tagged_text(dataset, "train", row) for row in rows])]
    found = []
    for number, name in enumerate((target.names or ("",))[:classes]):
        rows = target.rows(labels, number)[:each].tolist()
        found.append((name, [" | ".join(texts[row] for texts in dataset.texts["train"]) for row in rows]))
    return found


def tagged_text(dataset: Dataset, split: str, row: int) -> str:
    """A sentence with the tags of its words, but for O: "Ada/B-PER lives in Rome/B-LOC"."""
    found, target = words.of_joined(dataset.texts[split][0][row]), dataset.features.target
    names = [target.names[tag] for tag in word_tags(dataset, split, row).tolist()]
    pairs = itertools.zip_longest(found, names, fillvalue="O")
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in pairs)


def word_tags(dataset: Dataset, split: str, row: int) -> np.ndarray:
    """The tags of a sentence's words, those that were cut left out, int [words]."""
    labels = dataset.splits[split]["label"]
    if "offsets" in dataset.splits[split]:
        start, stop = dataset.splits[split]["offsets"][row : row + 2]
        return np.asarray(labels[start:stop][labels[start:stop] >= 0])
    texts = dataset.texts[split][0]  # without a tokenizer there is one label a word
    before = sum(len(words.of_joined(texts[number])) for number in range(row))
    return np.asarray(labels[before : before + len(words.of_joined(texts[row]))])


def opening(dataset: Dataset, *, lines: int = 5, width: int = 100) -> list[str]:
    """The first lines of the training text that are not empty."""
    head = openings.head(dataset, "train", 100 * lines * width)
    return [one_line(line, width) for line in head.splitlines() if line.strip()][:lines]


def first_documents(dataset: Dataset, width: int = 100) -> list[tuple[int, str]]:
    """The first training documents of those that are packed: tokens, and how each begins."""
    marks = dataset.info["packing"]["train"]["first"]
    read = openings.reader(dataset)
    tokens = dataset.splits["train"]["inputs"]
    return [
        (stop - start, one_line(read(tokens[start : min(stop, start + 4 * width)].tolist()), width))
        for start, stop in itertools.pairwise(marks)
    ]


def one_line(text: str, width: int) -> str:
    """A text that fits into so many columns of a terminal: no line ends or control characters, its end left out."""
    head = text[: 4 * width + 100]  # a text may be a book
    # What has the category of control or format characters would steer the terminal, not be seen on it.
    clean = "".join(c if c == " " or unicodedata.category(c)[0] not in "CZ" else " " for c in head)
    clean = " ".join(clean.split())
    ends = np.cumsum([formatting.columns(c) for c in clean] or [0])
    if ends[-1] <= width and len(head) == len(text):
        return clean
    return clean[: int(np.searchsorted(ends, width - 3, side="right"))].rstrip() + "..."


# ------------------------------------------------------------------------------------------------------------ images


def pick(dataset: Dataset, *, classes: int = 10, each: int = 8) -> list[tuple[str, Images]]:
    """Training images of the first classes, spread evenly over each, as (class name, uint8 [n, H, W, C])."""
    split, target = dataset.splits["train"], dataset.features.target
    picked = []
    for number, name in enumerate(target.names[:classes]):
        rows = target.rows(split["label"], number)
        chosen = rows[np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int)]
        picked.append((name, np.asarray(split["inputs"][chosen])))
    return picked


def contact_sheet(dataset: Dataset, *, classes: int = 10, each: int = 8, side: int = 64) -> Image.Image:
    """A grid of training images, one row a class with its name; each image fits into `side` pixels."""
    return sheet_of(pick(dataset, classes=classes, each=each), each, side)


def sheet_of(picked: list[tuple[str, Images]], columns: int, side: int = 64) -> Image.Image:
    """A grid of images, rows with their names; each image fits into `side` pixels."""
    gap, pen = 4, ImageDraw.Draw(Image.new("RGB", (1, 1)))
    labels = [name if len(name) <= 24 else f"{name[:23]}~" for name, _ in picked]
    left = max(round(pen.textlength(label)) for label in labels) + 3 * gap
    size = (left + columns * (side + gap), gap + len(picked) * (side + gap))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, (label, (_, images)) in enumerate(zip(labels, picked, strict=True)):
        top = gap + row * (side + gap)
        pen.text((gap, top + side // 2), label, fill="black", anchor="lm")
        for column, array in enumerate(images):
            sheet.paste(_fitted(array, side), (left + column * (side + gap), top))
    return sheet


def blocks(images: list[Images], side: int = 16) -> list[str]:
    """Images beside each other as lines of half blocks, two pixels a character, for a terminal with true colour."""
    cells = [np.asarray(_fitted(image, side)) for image in images]
    strip = np.concatenate([np.pad(c, ((0, 0), (0, 1), (0, 0))) for c in cells], axis=1)
    lines = []
    for upper, lower in zip(strip[0::2], strip[1::2], strict=True):
        pixels = (f"\x1b[38;2;{_rgb(a)};48;2;{_rgb(b)}m▀" for a, b in zip(upper, lower, strict=True))
        lines.append("".join(pixels) + "\x1b[0m")
    return lines


def _rgb(pixel: UInt8[np.ndarray, " channels"]) -> str:
    return ";".join(str(int(value)) for value in pixel)


def _fitted(array: UInt8[np.ndarray, "height width channels"], side: int) -> Image.Image:
    """An image scaled into a black square; small ones by whole pixels, so that they stay what they are."""
    image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array[..., :3]).convert("RGB")
    scale = side / max(image.size)
    if scale >= 2:
        scale = int(scale)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX)
    square = Image.new("RGB", (side, side))
    square.paste(resized, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square
