"""Compare runs: which keys, packages, data and results differ; or check that their metrics are equal."""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bigctl.cli import common, exported, render
from bigctl.formatting import columns, number
from bigctl.runs import differences
from bigctl.runs.differences import ABSENT, EXPORT, NOT_FINITE, Side

EXAMPLES = """\
Differences are relative to the first run. Metrics of a complete run are those of its summary; of any other run the
last that it logged, marked with *. Metrics of perf/ measure time and are not compared for equality.

examples:
  bigctl compare cnn_cls cnn_cls-1f3a
  bigctl compare sweeps/lr/trials/* --metrics 'val/*'
  bigctl compare runs/before runs/after --assert-equal               every bit of every metric at every step
  bigctl compare runs/cpu runs/gpu --tolerance 1e-5 --tolerance 'val/accuracy=0.01'
  bigctl compare bert_cls lstm_cls --significance                     paired tests on the same test examples
  bigctl compare runs/bert_cls runs/bert_cls/onnx-int8 --significance an export too, scored in its own runtime

exit codes: 0 ok, 1 --assert-equal or --tolerance has found a difference, 2 usage or configuration
"""
_SHOWN = 10
_LONGEST = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run directories, names under runs/, or exports; two or more"
    )
    parser.add_argument("--all", action="store_true", help="also show what is equal in all of them")
    parser.add_argument(
        "--metrics", action="append", default=[], metavar="PATTERN",
        help="only these, with * and ? as wildcards; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--assert-equal", action="store_true",
        help="exit with 1 unless all metrics, final and as logged at every step, are equal to the bit",
    )  # fmt: skip
    parser.add_argument(
        "--tolerance", action="append", default=[], metavar="[METRIC=]T",
        help="as --assert-equal, up to this relative difference; may be given again, for metrics by name",
    )  # fmt: skip
    parser.add_argument(
        "--significance", action="store_true",
        help="of two runs: paired tests of every metric on their test examples, which must be the same",
    )  # fmt: skip
    parser.add_argument(
        "--rounds", type=common.whole(least=100, most=100_000), default=1000, metavar="N",
        help="draws of --significance; default: 1000",
    )  # fmt: skip
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="of --significance")
    common.add_run_plugins(parser)
    common.add_exported(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    within = differences.tolerances(options.tolerance)
    if options.significance:
        return _significance(options)
    found = [exported.located(name, options.source) for name in options.runs]
    exported.require_source(options, found)
    secret = common.passphrase(options.passphrase_file, [str(each.path) for each in found])
    with contextlib.ExitStack() as opened:
        sides = differences.sides([opened.enter_context(exported.in_clear(each, secret)) for each in found])
    names = differences.known(sides, options.metrics, where="--metrics")
    differences.known(sides, within.some, where="--tolerance")
    config = differences.configuration(sides, every=options.all)
    surroundings = differences.surroundings(sides, every=options.all)
    compared = {}
    if options.assert_equal or options.tolerance:
        compared = {side.path: differences.equality(sides[0], side, within, names) for side in sides[1:]}
    equal = all(each.equal for results in compared.values() for each in results)
    if options.json:
        render.print_json({
            "runs": [differences.to_json(side) for side in sides],
            "config": config,
            "surroundings": surroundings,
            "metrics": differences.rows([_chosen(side, names) for side in sides], every=True),
            "equal": equal if compared else None,
            "comparisons": {path: [each.to_json() for each in results] for path, results in compared.items()},
        })  # fmt: skip
        return 0 if equal else 1
    _print(sides, config, surroundings, names)
    for side in sides[1:] if compared else ():
        _judge(sides[0], side, compared[side.path])
    return 0 if equal else 1


def _significance(options: argparse.Namespace) -> int:
    """Paired tests of two runs, printed."""
    from dataclasses import asdict

    from bigctl.errors import ConfigError

    if len(options.runs) != 2:
        raise ConfigError(f"{len(options.runs)} runs are given", where="--significance", hint="give two")
    found = [exported.located(name, options.source) for name in options.runs]
    exported.require_source(options, found)
    secret = common.passphrase(options.passphrase_file, [str(each.path) for each in found])
    from bigctl.inference import paired

    with contextlib.ExitStack() as opened:
        first, second = (opened.enter_context(exported.model(each, options, secret)) for each in found)
        told = paired.compare(first, second, split=options.split, rounds=options.rounds)
        about = {str(each.run.path): facts for each in (first, second) if (facts := exported.facts(each))}
    if options.json:
        render.print_json({**asdict(told), **({"exports": about} if about else {})})
        return 0
    print(f"{told.second} beside {told.first}: {told.count:,} {told.split} examples, {told.rounds:,} draws")
    for each in (first, second):
        exported.print_facts(each, named=True)
    if about and first.step != second.step:
        print(f"note: of step {first.step:,} and step {second.step:,}")
    rows = [
        [each.metric, number(each.first), number(each.second), f"{each.difference:+.4g}",
         f"{each.interval[0]:+.4g} to {each.interval[1]:+.4g}", f"{each.p:.3g}"]
        for each in told.metrics
    ]  # fmt: skip
    render.print_table(["metric", found[0].path.name, found[1].path.name, "difference", "95%", "p"], rows)
    if test := told.mcnemar:
        names = [each.path.name for each in found]
        only = f"{test.first_only:,} examples right by {names[0]} alone, {test.second_only:,} by {names[1]} alone"
        print(f"McNemar, exact: {only}: p {test.p:.3g}")
    print(f"of {len(rows)} metrics looked at, one in twenty has p < 0.05 where nothing differs")
    return 0


def _chosen(side: Side, names: set[str]) -> dict[str, float | None]:
    return {name: side.metrics[name] for name in sorted(side.metrics) if name in names}


def _judge(first: Side, other: Side, results: Sequence[Any]) -> None:
    """Print the first differences of two runs, or that there are none."""
    wrong = [each for each in results if not each.equal]
    if not wrong:
        count = sum(each.count for each in results)
        print(f"\n{other.name} equals {first.name}: {len(results):,} comparisons, {count:,} values")
        return
    print(
        f"bigctl: {other.path} differs from {first.path} in {len(wrong)} of {len(results)} comparisons", file=sys.stderr
    )
    for each in wrong[:_SHOWN]:
        print(f"        {each.difference}", file=sys.stderr)
    if len(wrong) > _SHOWN:
        print(f"        and {len(wrong) - _SHOWN:,} more; --json has them all", file=sys.stderr)


# -------------------------------------------------------------------------------------------------------------- tables


def _print(sides: Sequence[Side], config: Mapping[str, Any], surroundings: Mapping[str, Any], names: set[str]) -> None:
    steps = ["" if side.step is None else f"{side.step:,}" for side in sides]
    metrics = differences.rows([_chosen(side, names) for side in sides], every=True)
    times = differences.rows([side.times for side in sides], every=True)
    origins = {"made from": [side.derived_from or "" for side in sides]} if any(s.derived_from for s in sides) else {}
    models = [side.model or {} for side in sides]
    if any(side.status == EXPORT for side in sides):
        origins |= {name: [model.get(name, ABSENT) for model in models] for name in next(filter(None, models))}
    tables = {
        "run": {"status": [side.status for side in sides], "step": steps, **origins},
        "configuration": {key: [_text(value) for value in values] for key, values in config.items()},
        "surroundings": {key: [_text(value) for value in values] for key, values in surroundings.items()},
        "metric": {name: _metrics(values, sides) for name, values in metrics.items()},
        "time [s], rate": {name: _times(values) for name, values in times.items()},
    }
    filled = {title: rows for title, rows in tables.items() if rows}
    blocks = _blocks(filled, len(sides))
    for block in blocks:
        for title, rows in filled.items():
            if title != "run" or block is not blocks[0]:
                print()
            header = [title, *(sides[i].name for i in block)]
            render.print_table(header, [[name, *(cells[i] for i in block)] for name, cells in rows.items()])
    unread = [side.name for side in sides if not side.config]
    if len(sides) - len(unread) < 2:
        print(f"\nconfiguration: not compared, that of {' and '.join(unread)} cannot be read")
    elif not config:
        print("\nconfiguration: no difference" + (f" but for {', '.join(unread)}: unreadable" if unread else ""))
    if any(side.status == EXPORT and _predicts(side) for side in sides):
        print("an export keeps no metrics: two of these with --significance are scored on the same examples")
    for side in sides:
        if not side.final and side.metrics:
            what = "no evaluation yet" if side.evaluated is None else f"evaluated last at step {side.evaluated:,}"
            print(f"* {side.name} is {side.status}, {what}")
        for note in (*side.notes, *([f"{side.path}/metrics.jsonl: damaged lines left out"] if side.damaged else [])):
            print(f"note: {note}")


def _predicts(side: Side) -> bool:
    """Whether it predicts for examples, so that two can be tested in pairs."""
    from bigctl.runs import run_info

    return run_info.purpose_of(side.config.get("recipe.kind")) == "predict"


def _blocks(tables: Mapping[str, Mapping[str, Sequence[str]]], count: int) -> list[list[int]]:
    """Which runs share a table: on a terminal as many as fit, always with the first run."""
    if not sys.stdout.isatty():
        return [list(range(count))]
    room = shutil.get_terminal_size((120, 24)).columns
    widths = [max(columns(cells[i]) for rows in tables.values() for cells in rows.values()) + 2 for i in range(count)]
    left = max(columns(name) for title, rows in tables.items() for name in (title, *rows)) + widths[0]
    blocks, used = [[0]], left
    for i in range(1, count):
        if used + widths[i] > room and len(blocks[-1]) > 1:
            blocks.append([0])
            used = left
        blocks[-1].append(i)
        used += widths[i]
    return blocks


def _text(value: object) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e6:
        value = int(value)  # as it was typed: 40 epochs, and not 40.0
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = " ".join(text.split()) or '""'
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 + 3 :]}"


def _metrics(values: Sequence[Any], sides: Sequence[Side]) -> list[str]:
    """Numbers, and how far they are from that of the first run."""
    cells = []
    for i, (value, side) in enumerate(zip(values, sides, strict=True)):
        cell = value if value == ABSENT else NOT_FINITE if value is None else number(value)
        cell += "" if side.final or value == ABSENT else " *"
        if i and all(isinstance(v, int | float) for v in (values[0], value)):
            cell += f" ({value - values[0]:+.2g})" if value != values[0] else " (=)"
        cells.append(cell)
    return cells


def _times(values: Sequence[Any]) -> list[str]:
    cells = []
    for i, value in enumerate(values):
        cell = value if value == ABSENT else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
        if i and all(isinstance(v, int | float) and v > 0 for v in (values[0], value)):
            cell += f" ({value / values[0]:.2f}x)"
        cells.append(cell)
    return cells
