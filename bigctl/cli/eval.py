"""Score a trained model on a split of its data."""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING, Any

from bigctl import terminal
from bigctl.cli import common, exported, render, trust
from bigctl.formatting import columns, padded

if TYPE_CHECKING:
    from bigctl.inference.scored import Scored

EXAMPLES = """\
examples:
  bigctl eval runs/cnn_cls
  bigctl eval cnn_cls --step last --split validation
  bigctl eval bert_cls --errors 50                  list more of the worst errors
  bigctl eval mlp_cls --threshold f1                 of two classes: chosen on validation, and kept with the run
  bigctl eval mlp_cls --threshold 'recall>=0.9'
  bigctl eval cnn_cls --calibration --conformal 0.9 --bootstrap 1000
  bigctl eval mlp_cls --slices class                 or a column, or length of texts
  bigctl eval cnn_cls --ood fashion_mnist            or a folder: are strange examples told from the data's own?
  bigctl eval cnn_cls --robust linf=0.05,0.1         accuracy under attack
  bigctl eval cnn_cls --json
  bigctl eval cnn_cls --require 'test/accuracy>=0.97' --junit report.xml
  bigctl eval runs/cnn_cls/onnx --split validation   an export, in its own runtime
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, a name under runs/, or an export")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    parser.add_argument("--split", choices=("train", "validation", "val", "test"), default="test", help="default: test")
    parser.add_argument(
        "--errors", type=common.whole(), default=10, metavar="N", help="worst errors to list; 0 for none; default: 10"
    )
    common.add_threshold(parser, objectives=True)
    common.add_confidence(parser)
    trust.add_arguments(parser)
    common.add_tta(parser)
    common.add_run_plugins(parser)
    common.add_exported(parser)
    common.add_gates(parser)
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
    level = _required(options)
    options.split = {"val": "validation"}.get(options.split, options.split)
    from bigctl.runs import ci_report, gates
    from bigctl.runs.exports import Export

    required = gates.parse(options.require)
    reports = ci_report.Reports("eval", required, options.junit)
    found = exported.located(options.run, options.source)
    exported.require_source(options, [found])
    path = found.path
    secret = common.passphrase(options.passphrase_file, [str(path)])
    if isinstance(found, Export):
        exported.require_flags(options)
    try:
        import numpy as np

        from bigctl.inference.threshold import describe
        from bigctl.reports import plots

        with exported.model(found, options, secret, step=step, tta=options.tta) as trained:
            trained = common.with_threshold(trained, options.threshold)
            evaluation = trained.score(options.split, errors=options.errors)
            trained, believed = _assessed(trained, options, level)
        metrics, errors = dict(evaluation.metrics), evaluation.errors
        prefix = {"validation": "val"}.get(options.split, options.split)
        confusion = metrics.pop(f"{prefix}/confusion", None)
        verdicts = gates.judge(required, metrics)
    except Exception as error:
        reports.failed(error, run=path, seconds=time.monotonic() - options.began)
        raise
    scored = {"run": str(path), "step": trained.step, "split": options.split, "metrics": metrics}
    scored |= exported.facts(trained)
    positive = trained.positive
    each = plots.per_class(np.asarray(confusion), trained.classes) if confusion is not None else []
    several = (evaluation.curves.get("one_vs_rest") or {}).get("classes") or []
    for row, areas in zip(each, several, strict=False):
        row |= {name: areas[name] for name in _AREAS}
    reports.ended(verdicts, scored, seconds=time.monotonic() - options.began)
    classes = list(trained.features.target.names)
    if options.json:
        judged = {"gates": [verdict.to_json() for verdict in verdicts]} if required else {}
        about = {"confusion": confusion, "classes": classes, "per_class": each, "positive": positive}
        about |= {"curves": evaluation.curves, **believed}
        render.print_json({**scored, **about, "errors": errors, **judged})
        return common.exit_code(verdicts)
    print(f"{path}, step {trained.step:,}, {options.split} split")
    exported.print_facts(trained)
    render.print_metrics(metrics, believed.get("intervals"))
    print_believed(believed)
    render.print_passed(verdicts)
    if positive is not None:
        print(f"positive class: {terminal.one_line(positive)}")
    if trained.threshold is not None:
        render.print_wrapped(terminal.one_line(describe(trained.threshold)))
    _print_examples(each, confusion, classes, errors)
    print("\n  ".join(["next:", *exported.next_commands(trained)]))
    return common.exit_code(verdicts)


def _print_examples(
    each: list[dict[str, Any]], confusion: list[list[int]] | None, classes: list[str], errors: list[dict[str, Any]]
) -> None:
    """Classes, the confusion matrix and the worst errors, where there are such."""
    if each:
        print_classes(each)
    if confusion is not None:
        render.print_confusion(confusion, classes)
    if errors:
        (print_tag_errors if "words" in errors[0] else print_errors)(errors)


def _required(options: argparse.Namespace) -> float | None:
    """The level of --conformal. Raises ConfigError for flags that cannot be meant, before anything is loaded."""
    trust.require(options)
    return level_argument(options.conformal, options.sets)


def level_argument(text: str | None, kind: str | None) -> float | None:
    """A share of examples, if one is given. Raises ConfigError for what is none, and for sets that there are not."""
    from bigctl.errors import ConfigError

    if text is None:
        if kind is not None:
            raise ConfigError("no sets are asked for", where="--sets", hint="add --conformal 0.9")
        return None
    from bigctl.inference import confidence

    try:
        level = float(text)
    except ValueError as error:
        said = f"{text!r} is no share of examples"
        raise ConfigError(said, where="--conformal", hint="a number such as 0.9") from error
    confidence.require_sets(level, kind or confidence.KINDS[0])
    return level


def _assessed(trained: Scored, options: argparse.Namespace, level: float | None) -> tuple[Scored, dict[str, Any]]:
    """What was asked for about probabilities and scores, and the model with what of it is kept."""
    from dataclasses import asdict

    from bigctl.inference import assess, confidence

    found: dict[str, Any] = {}
    if options.calibration:
        trained, calibration = assess.calibrate(trained, options.split)
        found["calibration"] = asdict(calibration)
    if level is not None:
        trained, coverage = assess.cover(trained, level, options.sets or confidence.KINDS[0], options.split)
        found["conformal"] = asdict(coverage)
    if options.bootstrap:
        found["intervals"] = {
            name: list(ends) for name, ends in assess.bootstrap(trained, options.split, options.bootstrap).items()
        }
    return trained, {**found, **trust.assessed(trained, options)}


def print_believed(found: dict[str, Any]) -> None:
    """Calibration and sets, a line each, and what `trust` has found."""
    if told := found.get("calibration"):
        render.print_wrapped(
            f"temperature {told['temperature']:.3f}, fitted on validation and kept: calibration error "
            f"{told['error']:.4f} -> {told['scaled_error']:.4f}, loss {told['loss']:.4f} -> {told['scaled_loss']:.4f}"
            f"{_fitted_there(told)}"
        )
    if told := found.get("conformal"):
        low = min((share, name) for name, share in told["by_class"].items() if share is not None)
        render.print_wrapped(
            f"sets ({told['kind']}) for {told['level']:.0%}, cut on validation and kept: they hold the class of "
            f"{told['coverage']:.1%}, with {told['size']:.2f} classes on average; least of "
            f"{terminal.one_line(low[1])}: {low[0]:.1%}{_fitted_there(told)}"
        )
    trust.print_all(found)


def _fitted_there(told: dict[str, Any]) -> str:
    return " (of the very examples that it was fitted on)" if told["split"] == "validation" else ""


_AREAS = {"roc_auc": "ROC AUC", "average_precision": "average precision"}


def print_classes(each: list[dict[str, Any]], most: int = 20) -> None:
    """Precision, recall and F1 of each class, and of several how well it is told from the rest; of many classes those
    with the lowest F1."""
    if len(each) > most:
        print(f"the {most} classes with the lowest F1")
        each = sorted(each, key=lambda row: row["f1"] or 0.0)[:most]
    areas = {name: title for name, title in _AREAS.items() if name in each[0]}
    numbers = ("precision", "recall", "f1", *areas)
    cells = [[f"{row[name]:.4f}" if row[name] is not None else "-" for name in numbers] for row in each]
    rows = [[row["name"], str(row["count"]), *own] for row, own in zip(each, cells, strict=True)]
    render.print_table(["class", "examples", "precision", "recall", "F1", *areas.values()], rows)


def print_errors(errors: list[dict[str, Any]]) -> None:
    """One error a line: loss, classes, probability of the wrong one, the file or line it comes from (or the row in the
    split), and the text.

    Where an example has several classes they are lists, and no one probability belongs to them.
    """
    import shutil

    from bigctl.data.preview import one_line

    single = "probability" in errors[0]
    print(f"worst errors (loss, true -> predicted{', its probability' if single else ''})")
    pairs = [f"{one_line(_names(e['label']), 20)} -> {one_line(_names(e['predicted']), 20)}" for e in errors]
    wide = max(map(columns, pairs))
    room = shutil.get_terminal_size((120, 24)).columns - wide - 20
    for error, pair in zip(errors, pairs, strict=True):
        texts = [error[name] for name in ("text", "text_pair") if name in error]
        place = str(error.get("origin") or f"row {error['row']}")
        what = one_line("  ".join([place, " | ".join(texts)] if texts else [place]), max(20, room))
        probability = f"{error['probability']:.3f}  " if single else ""
        print(f"  {error['loss']:>7.3f}  {padded(pair, wide)}  {probability}{what}")


def print_tag_errors(errors: list[dict[str, Any]]) -> None:
    """One sentence a line: its loss, the words with a wrong tag, and how it reads."""
    import shutil

    from bigctl.data.preview import one_line

    print("worst sentences (loss, wrong words: true -> predicted tag, sentence)")
    for error in errors:
        rows = zip(error["words"], error["label"], error["predicted"], strict=True)
        wrong = [f"{one_line(word, 20)}: {true} -> {said}" for word, true, said in rows if true != said]
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        room = max(20, shutil.get_terminal_size((120, 24)).columns - columns(shown) - 13)
        place = f"{error['origin']}  " if error.get("origin") else ""
        print(f"  {error['loss']:>7.3f}  {shown}  {one_line(place + error['text'], room)}")


def _names(label: str | list[str]) -> str:
    return label if isinstance(label, str) else ", ".join(label) or "(none)"
