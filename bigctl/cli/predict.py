"""Label files or texts with a trained model: JSON lines, one an image, a table row or a text, or a table (--out)."""

from __future__ import annotations

import argparse
import contextlib
import glob
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl import terminal
from bigctl.cli import common, exported, render
from bigctl.cli.eval import step_argument

if TYPE_CHECKING:
    from bigctl.inference.predictor import Predictor
    from bigctl.inference.text_batches import Text
    from bigctl.inference.trained import TrainedRun
    from bigctl.runs.directory import RunDirectory

EXAMPLES = """\
examples:
  bigctl predict runs/cnn_cls photo.png other.jpg
  bigctl predict runs/cnn_cls photos/ 'scans/*.png'      a folder, a pattern
  bigctl predict runs/mlp_cls new_rows.csv > labels.jsonl
  bigctl predict runs/mlp_cls new_rows.csv --out preds.csv        or .parquet, .jsonl; a column `id` is kept
  bigctl predict runs/mlp_cls new_rows.csv --out preds.parquet --id customer --top-k 3
  bigctl predict runs/cnn_cls photos/ --embeddings --out vectors.parquet
  cat rows.csv | bigctl predict runs/mlp_cls -
  bigctl predict runs/bert_cls --text "a film to fall asleep over" --text "what a delight"
  bigctl predict runs/bert_cls reviews.csv             the text column is that of training
  bigctl predict runs/bert_tag words.jsonl              spans of a tagger, words being those of the file
  cat reviews.txt | bigctl predict runs/bert_cls -     one text a line, labelled as they come
  bigctl predict runs/mlp_cls/onnx new_rows.csv         what bigctl export wrote
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a run directory, a name under runs/, or a folder that `bigctl export` wrote"
    parser.add_argument("run", metavar="RUN", help=what)
    parser.add_argument(
        "files", nargs="*", metavar="FILE",
        help="images, tables (csv, tsv, jsonl, ...), texts (also .txt); a folder, a pattern, or - for standard input, "
        "of texts one a line",
    )  # fmt: skip
    common.add_texts(parser)
    parser.add_argument(
        "--strict", action="store_true",
        help="stop at the first file or row that cannot be read; by default it is a record with an error",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write a table, .csv, .tsv, .parquet or .jsonl, in the order of the input",
    )  # fmt: skip
    parser.add_argument(
        "--id", metavar="COLUMN",
        help="column of the input that every answer keeps; default: with --out a column `id`, where there is one",
    )  # fmt: skip
    parser.add_argument(
        "--top-k",
        type=common.whole("number of classes", 1),
        metavar="K",
        help="give the K likeliest classes, the likeliest first",
    )
    parser.add_argument("--embeddings", action="store_true", help="give what the last layer reads of each example too")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    parser.add_argument(
        "--uncalibrated", action="store_true",
        help="leave aside the temperature and the sets of classes that `eval` has kept with the run",
    )  # fmt: skip
    common.add_threshold(parser)
    common.add_tta(parser)
    common.add_passphrase(parser)
    common.add_run_plugins(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    if options.out is not None:
        _check_out(options.out, options.files)
    made = _exported(options)
    where, features = _located_features(options) if made is None else (options.run, made.features.to_json())
    texts: list[Text] = []
    if features["kind"] == "text":
        texts = given_texts(options, bool(features.get("pairs")))
        if not options.files and not texts:
            options.files = [_standard_input(options.run)]
    else:
        _require_files(options, features["kind"])
    named = _named(options.files, features, where)
    trained = made or _trained(options, where, step)
    if options.uncalibrated:
        trained = trained.with_confidence(None)
    trained = trained.with_details(top=options.top_k, embeddings=options.embeddings)
    answers = _Answers()
    if options.out is not None:
        answers = _Table(options.out, ranked=options.top_k is not None, embedded=bool(options.embeddings))
    ids = [options.id] if options.id else ["id", "ID", "Id"] if options.out is not None else []
    if texts:
        answers.show(_labelled(trained, texts))
    if named:
        answers.show(trained.predict_files(named, strict=options.strict, ids=ids, require=bool(options.id)))
    if "-" in options.files and features["kind"] == "text":
        _stream(trained, answers, options.strict)
    elif "-" in options.files:
        piped = [_all_of_stdin()]
        answers.show(trained.predict_files(piped, strict=options.strict, ids=ids, require=bool(options.id)))
    code = answers.end()
    if options.out is not None and made is None and answers.errors < answers.count:
        print(f"next:\n  bigctl report {where}\n  bigctl ui")
    return code


def _exported(options: argparse.Namespace) -> Predictor | None:
    """The model of an export; None where a run is meant. Raises ConfigError for what only a run has."""
    from bigctl.runs import exports

    found = exports.find(options.run)
    secret = common.passphrase(options.passphrase_file, [options.run])
    if found is None:
        return None
    exported.require_asked(options, "predict with the run")
    from bigctl.inference import artefact

    model = artefact.labelling(found.path, plugins=options.plugin, passphrase=secret)
    for note in model.other_answers:
        print(terminal.wrapped(f"note: {note}", sys.stderr), file=sys.stderr)
    return _decided(model, options)


def _located_features(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """A run, and what its data looked like. Raises RunError for one that labels nothing."""
    from bigctl.errors import RunError

    found = _located(options)
    where, record = str(found.path), found.record()
    if "data" not in record:
        raise RunError("the run has not started training", where=where)
    features: dict[str, Any] = record["data"]["features"]
    if features["kind"] == "stream":
        hint = f'bigctl generate {options.run} --prompt "..."'
        raise RunError("a language model writes text, it labels none", where=where, hint=hint)
    return where, features


def _trained(options: argparse.Namespace, where: str, step: str | int) -> TrainedRun:
    """The model of a run, with the threshold that is asked for."""
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(where, step=step, plugins=options.plugin, tta=options.tta)
    return _decided(trained, options)


def _decided(trained: common.Model, options: argparse.Namespace) -> common.Model:
    """With the threshold that is asked for, which it says where it is another's choice."""
    trained = common.with_threshold(trained, options.threshold)
    if trained.threshold is not None and not options.threshold:
        from bigctl.inference.threshold import describe

        scaled = None if trained.confidence is None or options.uncalibrated else trained.confidence.temperature
        said = f"{describe(trained.threshold, scaled)}; --threshold none leaves it out"
        print(terminal.wrapped(terminal.one_line(said), sys.stderr), file=sys.stderr)
    return trained


def _check_out(out: Path, files: list[str]) -> None:
    """Raises ConfigError for a file that cannot be meant, before the model is loaded."""
    from bigctl.errors import ConfigError
    from bigctl.inference.prediction_file import require_format

    require_format(out)
    if out.exists() and any(Path(name).exists() and out.samefile(name) for name in files):
        raise ConfigError("is one of the files to predict", where=str(out), hint="choose another --out FILE")
    if not out.absolute().parent.is_dir():
        hint = "make it, or choose another --out FILE"
        raise ConfigError("there is no such folder", where=str(out.absolute().parent), hint=hint)


def _located(options: argparse.Namespace) -> RunDirectory:
    """The run. Raises RunError where there is none; it says so where the run stands among the files."""
    from bigctl.errors import DataError, RunError
    from bigctl.runs import directory

    try:
        return directory.locate(options.run)
    except RunError as error:
        for place, name in enumerate(options.files if Path(options.run).exists() else ()):
            with contextlib.suppress(RunError):
                directory.locate(name)
                others = [options.run, *options.files[:place], *options.files[place + 1 :]]
                hint = f"the run comes first: {shlex.join(['bigctl', 'predict', name, *others])}"
                raise DataError("is no run", where=options.run, hint=hint) from error
        raise


# ----------------------------------------------------------------------------------------------- what is to be labelled


def given_texts(options: argparse.Namespace, pairs: bool) -> list[Text]:
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


def _named(given: list[str], features: dict[str, Any], run: str) -> list[str]:
    """The files that are given: themselves, those of a folder that can be predicted, or those that match a pattern."""
    from bigctl.data import catalog
    from bigctl.data.dataset import Features
    from bigctl.data.files import paths
    from bigctl.data.files.remote import is_remote
    from bigctl.data.sources import content, text_files
    from bigctl.errors import DataError

    found: list[str] = []
    for name in given:
        if name == "-":
            continue
        if is_remote(name):
            raise DataError(
                "is an address, and files are what is predicted", where=name, hint="fetch it, and give the file"
            )
        if not Path(name).exists() and not glob.has_magic(name):
            wanted = ", ".join(sorted(catalog.suffixes(Features.from_json(features))))
            hint = f"give a file ({wanted}), a folder of them, or a pattern in quotes: '{name}*'"
            raise DataError("there is no such file or folder", where=name, hint=hint)
        known = set(catalog.suffixes(Features.from_json(features)))
        if Path(name).is_dir() and not any(paths.walk(Path(name))):
            hint = f"nor do folders in it; the run {run} takes {', '.join(sorted(known))}"
            raise DataError("the folder holds no files", where=name, hint=hint)
        if glob.has_magic(name) and not Path(name).exists() and any(map(Path.is_dir, text_files.entries(name))):
            found += _of_pattern(name, known, run)
            continue
        files = [*map(str, text_files.matching(name))]
        if Path(name).is_dir():
            readable = [file for file in files if content.suffix_of(file) in known]
            if not readable:
                hint = f"the run {run} takes {', '.join(sorted(known))}"
                what = "its one file cannot" if len(files) == 1 else f"none of its {len(files):,} files can"
                raise DataError(f"{what} be predicted", where=name, hint=hint)
            if len(readable) < len(files):
                left = len(files) - len(readable)
                what = "1 file of another kind is" if left == 1 else f"{left:,} files of other kinds are"
                print(f"{name}: {what} left out", file=sys.stderr)
            files = readable
        found += files
    return found


def _of_pattern(pattern: str, known: set[str], run: str) -> list[str]:
    """Files that match a pattern, and what can be predicted in the folders that do, as where a shell unfolds it."""
    from bigctl.data.files import paths
    from bigctl.data.sources import content, text_files
    from bigctl.errors import DataError

    found = dict[str, None]()
    for entry in text_files.entries(pattern):
        below = sorted(file for file in paths.walk(entry) if not paths.hidden(file.name)) if entry.is_dir() else []
        found |= dict.fromkeys(str(file) for file in below if content.suffix_of(str(file)) in known)
        found |= {str(entry): None} if entry.is_file() else {}
    if not found:
        hint = f"the run {run} takes {', '.join(sorted(known))}"
        raise DataError("no file in the folders that match can be predicted", where=pattern, hint=hint)
    return [*found]


def _all_of_stdin() -> bytes:
    from bigctl.errors import DataError

    if sys.stdin is None:
        raise DataError("is closed", where="stdin")
    return sys.stdin.buffer.read()


# ---------------------------------------------------------------------------------------------------------- the answers


def _labelled(trained: Predictor, texts: list[Text]) -> Iterable[dict[str, Any]]:
    for text, record in zip(texts, trained.label_texts(texts), strict=True):
        first, *second = (text,) if isinstance(text, str) else text
        yield {"text": first, **({"text_pair": second[0]} if second else {}), **record}


def _stream(trained: Predictor, answers: _Answers, strict: bool) -> None:
    """Texts on standard input, answered as they arrive."""
    from bigctl.errors import DataError
    from bigctl.inference import read_lines
    from bigctl.inference.file_records import BLOCK

    if sys.stdin is None:
        raise DataError("is closed", where="stdin")
    stream = cast(read_lines.Stream, sys.stdin.buffer)
    read = read_lines.text_blocks if strict else read_lines.checked_blocks
    encoding = getattr(trained.config.data, "encoding", None)
    for block in read(stream, pairs=trained.features.pairs, encoding=encoding):
        for start in range(0, len(block), BLOCK):
            part = block[start : start + BLOCK]
            good = iter([*_labelled(trained, [text for text in part if not isinstance(text, DataError)])])
            answers.show({"error": str(text)} if isinstance(text, DataError) else next(good) for text in part)


class _Answers:
    """Prints records, and counts those that are errors."""

    def __init__(self) -> None:
        self.count, self.errors = 0, 0

    def show(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self.count += 1
            self.errors += "error" in record
            print(render.json_text(record))
        sys.stdout.flush()

    def end(self) -> int:
        """The exit code: that of an error where nothing could be predicted."""
        self.finish()
        if self.errors:
            what = f"{self.errors:,} of {self.count:,} could not be predicted; {self.why()}"
            print(terminal.wrapped(f"warning: {what}", sys.stderr, 9), file=sys.stderr)
        return 2 if self.count and self.errors == self.count else 0

    def finish(self) -> None:
        """All records are there."""

    def why(self) -> str:
        """Where it is told why some could not be predicted."""
        return "each says why"


class _Table(_Answers):
    """Writes records to a file, once all are there."""

    def __init__(self, out: Path, *, ranked: bool, embedded: bool):
        super().__init__()
        self._out, self._ranked, self._embedded = out, ranked, embedded
        self._records: list[dict[str, Any]] = []

    def show(self, records: Iterable[dict[str, Any]]) -> None:
        for record in records:
            self.count += 1
            self.errors += "error" in record
            self._records.append(record)

    def why(self) -> str:
        return f"the first: {next(record['error'] for record in self._records if 'error' in record)}"

    def finish(self) -> None:
        from bigctl.inference.prediction_file import write_predictions

        write_predictions(self._out, self._records, ranked=self._ranked)
        failed = f", {self.errors:,} with an error" if self.errors else ""
        made = f"{self.count - self.errors:,} predictions{' with embeddings' * self._embedded}"
        print(f"{self._out}: {made}{failed}")
