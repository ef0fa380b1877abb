"""Label files with a trained model: JSON lines on stdout, one an image or a table row."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from bigctl.cli.eval import step_argument

EXAMPLES = """\
examples:
  bigctl predict runs/cnn_cls photo.png other.jpg
  bigctl predict runs/mlp_cls new_rows.csv > labels.jsonl
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("files", nargs="+", metavar="FILE", help="images; or csv, tsv or jsonl tables")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    from bigctl.errors import DataError
    from bigctl.runs import directory

    found = directory.locate(options.run)
    for file in options.files:
        if Path(file).is_dir():
            raise DataError("is a folder, not a file", where=file, hint=f"name its files: {file.rstrip('/')}/*")
        if not Path(file).is_file():
            raise DataError("there is no such file", where=file)
    from bigctl.inference.trained import TrainedRun

    for record in TrainedRun.load(str(found.path), step=step).predict_files(options.files):
        print(json.dumps(record, ensure_ascii=False))
    return 0
