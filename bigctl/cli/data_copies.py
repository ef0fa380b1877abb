"""`bigctl data NAME --copies`: pictures of validation and test that are in the training split too."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from bigctl.cli import render
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.config.schema import Data
    from bigctl.data.copies import Copies
    from bigctl.data.dataset import Dataset

_SAID = {
    "same": "the same file or pixels",
    "near": "resized, compressed or brightened",
    "mirrored": "mirrored",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--copies", action="store_true", help="list pictures of validation and test that training has, made anew or not"
    )


def show(options: argparse.Namespace, data: Data, form: dict[str, Any]) -> int:
    """Print each picture that is a copy, with the one of the training split, and what was done to it."""
    from bigctl.data import copies
    from bigctl.data.preparation import prepare

    dataset = prepare.prepare(data, **form)
    if dataset.features.kind != "image":
        hint = "copies of texts are told by `bigctl data`, those of rows of a table by its notes"
        raise ConfigError("only pictures are compared", where="--copies", hint=hint)
    inputs = {split: columns["inputs"] for split, columns in dataset.splits.items()}
    near = copies.large(inputs["train"])
    if not near:
        small = f"pictures smaller than {copies.LEAST} pixels are held against each other byte by byte"
        print(f"bigctl: {small}: they are often alike by chance", file=sys.stderr)
    found = copies.of_pictures(inputs, near=near)
    listed = [each for split, own in found.items() for each in _listed(dataset, split, own)]
    if options.json:
        counts = {split: len(own) for split, own in found.items()}
        render.print_json({"count": counts, "compared": near, "copies": listed[: options.most]})
        return 0
    for split, own in found.items():
        share = f"{len(own) / max(1, dataset.size(split)):.1%}"
        print(f"{len(own):,} of {dataset.size(split):,} {split} pictures ({share}) are in the training split too")
    if listed:
        header = ["picture", "class", "in training", "class", "how", "alike"]
        rows = [
            [each["picture"], each["class"], each["of"], each["of_class"], _SAID[each["how"]], f"{each['alike']:.3f}"]
            for each in listed[: options.most]
        ]
        render.print_table(header, rows)
    if (more := len(listed) - options.most) > 0:
        print(f"... and {more:,} more: --most {len(listed)} lists all")
    return 0


def _listed(dataset: Dataset, split: str, found: Copies) -> list[dict[str, Any]]:
    """Each copy by the names of both files, where they are known, else by split and number; and their classes."""
    from bigctl.data import origins

    names = origins.read(dataset.path, split, found.rows.tolist())
    others = origins.read(dataset.path, "train", found.of.tolist())
    target, labels = dataset.features.target, {part: dataset.splits[part]["label"] for part in (split, "train")}
    return [
        {
            "split": split,
            "picture": names[i] or f"{split} {row}",
            "class": target.text(labels[split][row]),
            "of": others[i] or f"train {of}",
            "of_class": target.text(labels["train"][of]),
            "how": found.how[i],
            "alike": float(found.likeness[i]),
        }
        for i, (row, of) in enumerate(zip(found.rows.tolist(), found.of.tolist(), strict=True))
    ]
