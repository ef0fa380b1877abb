"""`bigctl data NAME --contact-sheet FILE.png`, and `--augmented`: pictures of a set, as they are and as training sees
them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

    from bigctl.config.schema import Config
    from bigctl.data.dataset import Dataset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="write a grid of images")
    parser.add_argument(
        "--augmented", type=Path, metavar="FILE.png", help="write images beside what a recipe's training sees of them"
    )


def wanted(options: argparse.Namespace) -> list[tuple[str, Path]]:
    """The pictures that are to be written, by their flags."""
    given = (("--contact-sheet", options.contact_sheet), ("--augmented", options.augmented))
    return [(flag, file) for flag, file in given if file is not None]


def write(dataset: Dataset, config: Config, flag: str, file: Path) -> None:
    from bigctl.data import preview

    if dataset.features.kind != "image" or not dataset.features.target.names:
        raise ConfigError("only image data with classes has one", where=flag)
    if file.suffix.lower() != ".png":
        raise ConfigError(f"{file} is no PNG file", where=flag, hint=f"{file.stem}.png")
    sheet = preview.contact_sheet(dataset) if flag == "--contact-sheet" else _augmented(dataset, config, flag)
    try:
        sheet.save(file, format="PNG")
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror or error}", where=flag) from error


def _augmented(dataset: Dataset, config: Config, flag: str) -> Image:
    from flax import nnx

    from bigctl.config import checks
    from bigctl.data.augmentation import sheet
    from bigctl.engine import doubts, experiment

    augment = getattr(config.recipe, "augment", None)
    if augment is None:
        hint = "name one of images too: recipe=cnn_cls, and its keys such as recipe.augment.rotate=20"
        raise ConfigError("how images are changed is told by a recipe", where=flag, hint=hint)
    checks.check(config, {}, only="recipe.")
    task = experiment.make_task(config, dataset.features, dataset)  # which refuses what training refuses,
    nnx.eval_shape(lambda: task.build(nnx.Rngs(0)))  # as the model does
    for note in doubts.notes(config, dataset.features):
        print(f"note: {note}", file=sys.stderr)
    return sheet.augmented_sheet(dataset, augment, config.seed)
