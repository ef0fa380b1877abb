"""Show why a trained model answers as it does: what each token, pixel or column adds to its answer."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl import terminal
from bigctl.cli import common, explained, render
from bigctl.cli.eval import step_argument

if TYPE_CHECKING:
    from bigctl.inference.explaining.asked import Explanation
    from bigctl.inference.explaining.explain import Explainer, Given
    from bigctl.inference.trained import TrainedRun

EXAMPLES = """\
examples:
  bigctl explain bert_cls --text "a film to fall asleep over"
  bigctl explain bert_cls --text "a film to fall asleep over" --method occlusion --json
  bigctl explain bert_cls reviews.csv --class pos --html why.html
  bigctl explain bert_cls --split test --count 50 --check
  bigctl explain bert_cls --text "a film to fall asleep over" --nearest 3
  bigctl explain gpt_lm --text "In the beginning God created the"       why the next token
  bigctl explain cnn_cls photo.png --method occlusion --html why.html
  bigctl explain mlp_cls rows.csv                    Shapley values against 100 rows of the training split
  bigctl explain mlp_cls --method permutation        which columns the model relies on, on validation
  bigctl explain bert_cls --global                   words by class, kept for the report; patches, columns
"""


_PERMUTATION = "permutation"


COUNT = 5
"""Of a split, how many are explained where nothing else is said."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument(
        "files", nargs="*", metavar="FILE", help="what to explain, files as `bigctl predict` takes them"
    )
    common.add_texts(parser)
    parser.add_argument(
        "--split", choices=("train", "validation", "val", "test"), help="explain examples of a split of the run's data"
    )
    parser.add_argument(
        "--count", type=common.whole(least=1), metavar="N",
        help="of --split, how many, from its beginning; default: 5",
    )  # fmt: skip
    parser.add_argument(
        "--method", metavar="NAME",
        help="texts: integrated_gradients (default), gradient_x_input, occlusion, attention_rollout (BERT); "
        "images: integrated_gradients, occlusion, grad_cam; tables: shapley, permutation",
    )  # fmt: skip
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME",
        help="the class, of a language model the next token; default: the one that is predicted",
    )  # fmt: skip
    parser.add_argument(
        "--background", type=common.whole(least=1, most=10_000), default=100, metavar="N",
        help="of tables, rows of the training split that stand for what is not known; default: 100",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=common.whole("seed"), default=0, metavar="N", help="of what is drawn at random; default: 0"
    )
    parser.add_argument(
        "--global", dest="overall", action="store_true",
        help="what the model goes by on a whole split (default: validation): columns and their values, words or "
        "patches by class; kept for the report",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="how faithful the explanations are: deletion and insertion against random orders, and random weights",
    )  # fmt: skip
    parser.add_argument(
        "--nearest", type=common.whole(least=0, most=100), default=0, metavar="N",
        help="also the N training examples that are nearest in what the last layer reads; default: 0",
    )  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with all explanations")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    options.split = {"val": "validation"}.get(options.split, options.split)
    _check(options)
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(options.run, step=step, plugins=options.plugin)
    if options.overall:
        return _overall(trained, options)
    if options.method == _PERMUTATION:
        return _importance(trained, options)
    from bigctl.inference.explaining import explain, neighbours

    if options.nearest:
        neighbours.require_nearest(trained)
    explainer = explain.explainer_of(trained, options.background, options.seed)
    method = explain.require_method(explainer, options.method)
    given = _given(trained, options)
    found = explain.explain(trained, explainer, given, method=method, wanted=options.wanted)
    if options.nearest:
        found = neighbours.with_nearest(trained, given.inputs, found, options.nearest, options.seed)
    checked = _checked(explainer, given, found, options) if options.check else {}
    if options.html is not None:
        _write_page(options.html, trained, found)
    if options.json:
        records = [each.to_json() for each in found]
        about: dict[str, Any] = {"run": str(trained.run.path), "step": trained.step}
        page = {"html": str(options.html)} if options.html is not None else {}
        alone = records[0] if len(records) == 1 else {}
        render.print_json({**about, **page, **alone, "explanations": records, **checked})
        return 0
    for number, each in enumerate(found):
        if number:
            print()
        explained.show(each)
    if checked:
        explained.show_check(checked["check"])
    if options.html is not None:
        print(options.html)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raises ConfigError where not one kind of examples is given, or the page cannot be written."""
    from bigctl.errors import ConfigError

    asked = {"--text": options.text, "FILE": options.files, "--split": options.split}
    named = [name for name, value in asked.items() if value]
    if options.overall:
        rest = {
            "--class": options.wanted,
            "--html": options.html,
            "--check": options.check,
            "--nearest": options.nearest,
        }
        if other := [*(name for name in named if name != "--split"), *(name for name, value in rest.items() if value)]:
            hint = "give --split, --count and --method alone; `bigctl report` shows what is found"
            raise ConfigError(f"looks at a whole split, and {other[0]} does not", where="--global", hint=hint)
        return
    if options.method == _PERMUTATION:
        if named[:1] not in ([], ["--split"]) or options.wanted or options.html:
            hint = "give --split alone, or another --method"
            raise ConfigError("looks at a whole split", where="--method permutation", hint=hint)
        return
    if not named:
        hint = f'bigctl explain {options.run} --text "...", or FILE, or --split test --count 5'
        raise ConfigError("nothing to explain is given", hint=hint)
    if options.count and "--split" not in named:
        raise ConfigError("is of --split", where="--count", hint=f"leave it out beside {named[0]}")
    if "--split" in named and len(named) > 1:
        raise ConfigError(f"is given beside {named[0]}", where="--split", hint="give one of them")
    if options.html is not None and not options.html.absolute().parent.is_dir():
        hint = "make it, or choose another --html FILE"
        raise ConfigError("there is no such folder", where=str(options.html.absolute().parent), hint=hint)
    read = [Path(file) for file in options.files if Path(file).exists()]
    if options.html is not None and options.html.exists() and any(map(options.html.samefile, read)):
        raise ConfigError("is one of the files to explain", where=str(options.html), hint="choose another --html FILE")


def _checked(
    explainer: Explainer, given: Given, found: list[Explanation], options: argparse.Namespace
) -> dict[str, Any]:
    from bigctl.errors import ConfigError
    from bigctl.inference.explaining.faithfulness import check

    if found and found[0].attribution.output is None:
        hint = "choose another --method"
        raise ConfigError(f"{found[0].attribution.method} sees no classes", where="--check", hint=hint)
    return {"check": check(explainer, given.inputs, found, options.seed)}


def _importance(trained: TrainedRun, options: argparse.Namespace) -> int:
    from bigctl.inference.explaining.importance import permutation_importance

    found = permutation_importance(trained, options.split or "validation", options.seed)
    if options.json:
        render.print_json({"run": str(trained.run.path), "step": trained.step, **found.to_json()})
    else:
        explained.show_importance(found.to_json())
    return 0


def _overall(trained: TrainedRun, options: argparse.Namespace) -> int:
    from bigctl.inference import kept
    from bigctl.inference.explaining import overall

    asked = options.split or "validation", options.count, options.method, options.seed
    found = overall.overall(trained, *asked)
    kept.keep(trained.run, trained.step, {"overall": found})
    if options.json:
        render.print_json({"run": str(trained.run.path), "step": trained.step, **found})
        return 0
    if found["kind"] == "table":
        explained.show_importance(found["importance"])
    for line in overall.sentences(found):
        render.print_wrapped(terminal.one_line(line))
    print(f"next:\n  bigctl report {trained.run.path}")
    return 0


def _given(trained: TrainedRun, options: argparse.Namespace) -> Given:
    from bigctl.cli.predict import given_texts
    from bigctl.errors import ConfigError
    from bigctl.inference.explaining import explain

    if trained.features.kind == "stream" and not options.text:
        hint = f'bigctl explain {options.run} --text "..."'
        raise ConfigError("a language model is asked about a prompt", where=str(trained.run.path), hint=hint)
    if options.split is not None:
        return explain.of_split(trained, options.split, options.count or COUNT)
    kind = trained.features.kind
    if (options.text or options.text_pair) and kind not in ("text", "stream"):
        what = {"image": "images", "table": "tables"}[kind]
        hint = f"bigctl explain {options.run} FILE, or --split test"
        raise ConfigError(f"the run was trained on {what}, not on texts", where="--text", hint=hint)
    texts: list[Any] = given_texts(options, trained.features.pairs)
    found = explain.of_files(trained, options.files) if options.files else explain.Given([])
    places: list[dict[str, Any]] = [{} for _ in texts]
    return explain.Given([*texts, *found.inputs], [*places, *found.places]) if texts else found


def _write_page(out: Path, trained: TrainedRun, found: list[Explanation]) -> None:
    from bigctl.errors import ConfigError
    from bigctl.files import write_text
    from bigctl.reports.explanation import explanation_page

    try:
        write_text(out, explanation_page(trained, found))
    except OSError as error:
        hint = "choose another place with --html FILE"
        raise ConfigError(f"cannot be written: {error.strerror}", where=str(out), hint=hint) from error
    print(f"wrote {out}", file=sys.stderr)
