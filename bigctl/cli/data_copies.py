"""`bigctl data NAME --copies`: pictures of validation and test that another split has too."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from bigctl.cli import render
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.config.schema import Data
    from bigctl.data.copies import Copy
    from bigctl.data.dataset import Dataset

_HOW = {"same": "the same file or pixels", "near": "resized, compressed or brightened", "mirrored": "mirrored"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copies",
        action="store_true",
        help="list pictures of validation and test that training has too, made anew or not, and those of both",
    )


def show(options: argparse.Namespace, data: Data, form: dict[str, Any]) -> int:
    """Print each picture that is a copy, with the one that it is of, and what was done to it."""
    from bigctl.data import copies
    from bigctl.data.preparation import prepare

    dataset = prepare.prepare(data, **form)
    if dataset.features.kind != "image":
        hint = "copies of texts are told by `bigctl data`, those of rows of a table by its notes"
        raise ConfigError("only pictures are compared", where="--copies", hint=hint)
    splits = copies.looks({split: columns["inputs"] for split, columns in dataset.splits.items()}, near=True)
    compared = all(own.small is not None for own in splits.values())
    if not compared:
        height, width = dataset.features.shape[:2]
        small = f"pictures of {height}x{width} are often alike by chance, so only the same pixels are looked for"
        larger = f"; data.image_size=[{copies.LEAST},{copies.LEAST}] or more compares photographs"
        print(f"bigctl: {small}{larger if hasattr(data, 'image_size') else ''}", file=sys.stderr)
    found = copies.across(splits)
    listed = _listed(dataset, found)
    if options.json:
        counts = {split: sum(copy.split == split for copy in found) for split in ("validation", "test")}
        render.print_json({"count": counts, "compared": compared, "copies": listed})
        return 0
    for split, other in (("validation", "train"), ("test", "train"), ("test", "validation")):
        count, size = sum((copy.split, copy.of_split) == (split, other) for copy in found), dataset.size(split)
        share = f" ({count / size:.1%})" if count else ""
        print(f"{count:,} of {size:,} {split} pictures{share} are in the {copies.SPLITS[other]} split too")
    if listed:
        columns = ("split", "picture", "class", "of_split", "of", "of_class")
        rows = [
            [*(each[name] for name in columns), _HOW[each["how"]], f"{each['alike']:.3f}"]
            for each in listed[: options.most]
        ]
        render.print_table(["split", "picture", "class", "is in", "as", "class", "how", "alike"], rows)
    if (more := len(listed) - options.most) > 0:
        print(f"... and {more:,} more: --most {len(listed)} lists all")
    return 0


def _listed(dataset: Dataset, found: list[Copy]) -> list[dict[str, Any]]:
    """Each copy by the names of both files, where they are known, else by split and number; and their classes."""
    from bigctl.data import origins

    target, columns = dataset.features.target, dataset.splits
    names = origins.read_all(dataset.path, [(copy.split, copy.row) for copy in found])
    others = origins.read_all(dataset.path, [(copy.of_split, copy.of_row) for copy in found])
    return [
        {
            "split": copy.split,
            "picture": name,
            "class": target.text(columns[copy.split]["label"][copy.row]),
            "of_split": copy.of_split,
            "of": other,
            "of_class": target.text(columns[copy.of_split]["label"][copy.of_row]),
            "how": copy.how,
            "alike": copy.alike,
        }
        for copy, name, other in zip(found, names, others, strict=True)
    ]
