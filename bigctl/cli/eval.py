"""Score a trained model on a split of its data."""

from __future__ import annotations

import argparse

from bigctl.cli import common

EXAMPLES = """\
examples:
  bigctl eval runs/cnn_cls
  bigctl eval cnn_cls --step last --split validation
  bigctl eval cnn_cls --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    parser.add_argument("--split", choices=("train", "validation", "val", "test"), default="test", help="default: test")
    common.add_json(parser)


def step_argument(text: str) -> str | int:
    """best, last, or a number. Raises ConfigError for anything else."""
    from bigctl.errors import ConfigError

    if text in ("best", "last"):
        return text
    if text.isdigit():
        return int(text)
    raise ConfigError(f"{text!r} is no checkpoint", where="--step", hint="best, last, or a step such as 400")


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    options.split = {"val": "validation"}.get(options.split, options.split)
    from bigctl.runs import directory

    found = directory.locate(options.run)
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step)
    metrics = trained.evaluate(options.split)
    prefix = {"validation": "val"}.get(options.split, options.split)
    confusion = metrics.pop(f"{prefix}/confusion", None)
    classes = list(trained.features.classes or ())
    if options.json:
        report = {"run": str(found.path), "step": trained.step, "split": options.split, "metrics": metrics}
        common.print_json({**report, "confusion": confusion, "classes": classes})
        return 0
    print(f"{found.path}, step {trained.step:,}, {options.split} split")
    for name, value in sorted(metrics.items()):
        print(f"  {name:<16} {value:.4f}")
    if confusion is not None:
        print_confusion(confusion, classes)
    return 0


def print_confusion(confusion: list[list[int]], classes: list[str], most: int = 20) -> None:
    """The matrix for few classes; for many, the pairs that are confused most often."""
    if len(classes) <= most:
        width = max(len(str(n)) for row in confusion for n in row)
        width = max(width, *(len(c[:12]) for c in classes))
        print("confusion (rows: true class, columns: predicted)")
        print(" " * 14 + " ".join(c[:12].rjust(width) for c in classes))
        for name, row in zip(classes, confusion, strict=True):
            print("  " + name[:12].ljust(12) + " ".join(str(n).rjust(width) for n in row))
        return
    pairs = [(n, classes[t], classes[p]) for t, row in enumerate(confusion) for p, n in enumerate(row) if t != p and n]
    print("confused most often (true -> predicted)")
    for n, true, predicted in sorted(pairs, reverse=True)[:10]:
        print(f"  {n:>6}  {true} -> {predicted}")
