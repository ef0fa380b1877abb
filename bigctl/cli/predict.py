"""Label files or texts with a trained model: JSON lines on stdout, one an image, a table row or a text."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl.cli import common
from bigctl.cli.eval import step_argument

if TYPE_CHECKING:
    from bigctl.inference.text_batches import Text
    from bigctl.inference.trained import TrainedRun

EXAMPLES = """\
examples:
  bigctl predict runs/cnn_cls photo.png other.jpg
  bigctl predict runs/mlp_cls new_rows.csv > labels.jsonl
  bigctl predict runs/bert_cls --text "a film to fall asleep over" --text "what a delight"
  bigctl predict runs/bert_cls reviews.csv             the text column is that of training
  bigctl predict runs/bert_tag words.jsonl              spans of a tagger, words being those of the file
  cat reviews.txt | bigctl predict runs/bert_cls -     one text a line, labelled as they come
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument(
        "files", nargs="*", metavar="FILE",
        help="images; csv, tsv or jsonl tables; of texts also .txt, or - for standard input, with one text a line",
    )  # fmt: skip
    parser.add_argument("--text", action="append", default=[], metavar="STR", help="a text; may be given repeatedly")
    parser.add_argument(
        "--text-pair", action="append", default=[], metavar="STR",
        help="the second text, for a run on pairs; one to each --text",
    )  # fmt: skip
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    from bigctl.errors import RunError
    from bigctl.runs import directory

    found = directory.locate(options.run)
    record = found.record()
    if "data" not in record:
        raise RunError("the run has not started training", where=str(found.path))
    features = record["data"]["features"]
    if features["kind"] == "stream":
        hint = f'bigctl generate {options.run} --prompt "..."'
        raise RunError("a language model writes text, it labels none", where=str(found.path), hint=hint)
    texts: list[Text] = []
    if features["kind"] == "text":
        texts = _given(options, bool(features.get("pairs")))
        if not options.files and not texts:
            options.files = [_standard_input(options.run)]
    else:
        _require_files(options, features["kind"])
    for file in options.files:
        if file != "-":
            _require_file(file)
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    if texts:
        _print(_labelled(trained, texts))
    files = [file for file in options.files if file != "-"]
    if files:
        _print(trained.predict_files(files))
    if "-" in options.files:
        _stream(trained)
    return 0


# ----------------------------------------------------------------------------------------------- what is to be labelled


def _given(options: argparse.Namespace, pairs: bool) -> list[Text]:
    """The texts of --text and --text-pair. Raises ConfigError where they cannot be used."""
    from bigctl.errors import ConfigError

    for flag, values in (("--text", options.text), ("--text-pair", options.text_pair)):
        for value in values:
            if not value.strip():
                raise ConfigError("the text is empty", where=flag, hint="write one")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ConfigError("the text is not UTF-8", where=flag, hint="convert it, with iconv") from None
    if not pairs:
        if options.text_pair:
            raise ConfigError("the run was trained on single texts", where="--text-pair", hint="leave it out")
        return list(options.text)
    if len(options.text) != len(options.text_pair):
        raise ConfigError(
            f"{len(options.text)} first and {len(options.text_pair)} second texts; the run was trained on pairs",
            where="--text-pair",
            hint="give one --text-pair to each --text",
        )
    return list(zip(options.text, options.text_pair, strict=True))


def _standard_input(run: str) -> str:
    from bigctl.errors import ConfigError

    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "nothing to label is given",
            hint=f'bigctl predict {run} --text "...", or FILE, or - to type one text a line',
        )
    return "-"


def _require_files(options: argparse.Namespace, kind: str) -> None:
    from bigctl.errors import ConfigError

    example = f"bigctl predict {options.run} {'FILE.csv' if kind == 'table' else 'FILE.png'}"
    for flag, values in (("--text", options.text), ("--text-pair", options.text_pair)):
        if values:
            what = "tables" if kind == "table" else "images"
            raise ConfigError(f"the run was trained on {what}, not on texts", where=flag, hint=example)
    if not options.files:
        raise ConfigError("no file is given", hint=example)
    if "-" in options.files:
        raise ConfigError("only texts are read from standard input", where="-", hint=example)


def _require_file(file: str) -> None:
    from bigctl.errors import DataError

    if Path(file).is_dir():
        raise DataError("is a folder, not a file", where=file, hint=f"name its files: {file.rstrip('/')}/*")
    if not Path(file).is_file():
        raise DataError("there is no such file", where=file)


# ---------------------------------------------------------------------------------------------------------- the answers


def _labelled(trained: TrainedRun, texts: list[Text]) -> Iterable[dict[str, Any]]:
    for text, record in zip(texts, trained.label_texts(texts), strict=True):
        first, *second = (text,) if isinstance(text, str) else text
        yield {"text": first, **({"text_pair": second[0]} if second else {}), **record}


def _stream(trained: TrainedRun) -> None:
    """Texts on standard input, answered as they arrive."""
    from bigctl.errors import DataError
    from bigctl.inference import read_lines
    from bigctl.inference.trained import BLOCK

    if sys.stdin is None:
        raise DataError("is closed", where="stdin")
    stream = cast(read_lines.Stream, sys.stdin.buffer)
    for block in read_lines.text_blocks(stream, pairs=trained.features.pairs):
        for start in range(0, len(block), BLOCK):
            _print(_labelled(trained, block[start : start + BLOCK]))


def _print(records: Iterable[dict[str, Any]]) -> None:
    for record in records:
        print(json.dumps(record, ensure_ascii=False))
    sys.stdout.flush()
