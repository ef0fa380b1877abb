"""Print the composed configuration and where each value comes from. The command may be incomplete."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from bigctl import files
from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.config.compose import Composed
    from bigctl.config.schema import Config

EXAMPLES = """\
examples:
  bigctl show recipe=cnn_cls
  bigctl show recipe=cnn_cls optimizer=sgd --only optimizer --docs
  bigctl show model=cnn --only model                what a model has, without a recipe
  bigctl show train --docs                          a word without = is short for --only
  bigctl show recipe=cnn_cls --yaml                 plain YAML
  bigctl show recipe=cnn_cls seed=1 --diff cnn_cls  what differs from a run
  bigctl show --diff cnn_cls                        what that run's own command gives now
"""

WIDEST = 48  # where comments start at the latest; longer lines push theirs to the right


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="this key, or all keys below it")
    parser.add_argument("--docs", action="store_true", help="explain each key and whether a resumed run may change it")
    parser.add_argument("--diff", metavar="RUN", help="compare with the configuration of a run")
    parser.add_argument("--yaml", action="store_true", help="print plain YAML")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    words = [word for word in options.overrides if "=" not in word and not word.startswith("~")]
    options.only += words  # `show optimizer` for `show --only optimizer`
    options.overrides = [word for word in options.overrides if word not in words]
    if options.diff:
        return _diff(options)
    from bigctl.config import schema

    composed = common.composed(options, partial=True)
    for dotted in composed.missing:
        _assign(composed.config, dotted, schema.MISSING)
    leaves = _below(options.only, {key: (field, value) for key, field, value in schema.walk_config(composed.config)})
    origins = {key: _origin(key, composed) for key in leaves}
    docs = {key: describe(field) for key, (field, _) in leaves.items()}
    values = {key: value for key, (_, value) in leaves.items()}
    if options.json:
        report = {"overrides": composed.overrides, "config": nested(values), "origins": origins}
        missing = [key for key in composed.missing if key in leaves]
        render.print_json({**report, "missing": missing, **({"docs": docs} if options.docs else {})})
    elif options.yaml:
        import yaml

        print(yaml.safe_dump(nested(values), sort_keys=False), end="")
    else:
        _print(values, origins, docs if options.docs else {})
    return 0


def describe(field: dataclasses.Field[Any]) -> str:
    """What a key means, its unit and choices, and what a change of it does to a run that is resumed."""
    choices = field.metadata.get("choices")
    allowed = f" One of: {', '.join(choices)}." if choices else ""
    return f"{field.metadata.get('doc', '')}{allowed} Drift: {field.metadata.get('drift', 'trajectory')}."


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as dictionaries of dictionaries."""
    tree: dict[str, Any] = {}
    for dotted, value in values.items():
        *parents, name = dotted.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _origin(key: str, composed: Composed) -> str:
    if key in composed.missing:
        return f"must be given: {key}={'...' if '.' in key else 'NAME'}"
    origin = composed.origins.get(key, "schema")
    return "default" if origin == "schema" else str(origin)


def _assign(config: Config, dotted: str, value: object) -> None:
    node: object = config
    *parents, name = dotted.split(".")
    for parent in parents:
        node = getattr(node, parent)
    setattr(node, name, value)


def _below(
    wanted: Sequence[str], leaves: dict[str, Any], hint: str = "`bigctl show` without it lists all keys"
) -> dict[str, Any]:
    """The keys that were asked for. Raises ConfigError, with close matches, for one that is not there."""
    for key in wanted:
        if not any(_under(leaf, [key]) for leaf in leaves):
            import difflib

            from bigctl.errors import ConfigError

            known = {leaf.rsplit(".", depth)[0] for leaf in leaves for depth in range(leaf.count(".") + 1)}
            close = difflib.get_close_matches(key, sorted(known), n=3)
            guess = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ConfigError(f"there is no key {key!r} here{guess}", hint=hint)
    return {leaf: found for leaf, found in leaves.items() if _under(leaf, wanted)}


def _under(leaf: str, wanted: Sequence[str]) -> bool:
    return not wanted or any(f"{leaf}.".startswith(f"{key}.") for key in wanted)


def _print(values: Mapping[str, Any], origins: Mapping[str, str], docs: Mapping[str, str]) -> None:
    """YAML with a comment behind every value; what a key means stands above it."""
    lines: list[tuple[str, str]] = []
    above: list[str] = []
    for dotted, value in values.items():
        *parents, name = dotted.split(".")
        for depth, parent in enumerate(parents):
            if parents[: depth + 1] != above[: depth + 1]:
                lines.append((f"{'  ' * depth}{parent}:", ""))
        above = parents
        indent = "  " * len(parents)
        if dotted in docs:
            lines.append((f"{indent}# {docs[dotted]}", ""))
        lines.append((f"{indent}{name}: {_scalar(value)}", f"# {origins[dotted]}"))
    width = min(WIDEST, max((len(text) for text, comment in lines if comment), default=0))
    for text, comment in lines:
        print(f"{text:<{width}}   {comment}" if comment else text)


def _scalar(value: object) -> str:
    """A value on one line, as YAML reads it."""
    import yaml

    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _diff(options: argparse.Namespace) -> int:
    from bigctl.config import compose, drift, schema
    from bigctl.runs import directory

    found = directory.locate(options.diff)
    if not options.overrides and found.overrides.is_file():
        options.overrides = files.read_regular(found.overrides).decode(errors="replace").splitlines()
    now = common.composed(options).config
    then = compose.from_yaml(found.read_config(), where=str(found.config))
    values = [{key: value for key, _, value in schema.walk_config(side)} for side in (then, now)]
    _below(options.only, dict.fromkeys([*values[0], *values[1]]), "`bigctl compare RUN RUN` compares two runs")
    changes = [c for c in drift.changes(then, now) if _under(c.key, options.only) and not drift.undecided(c)]
    if options.json:
        sides = dict(zip(("run", "now"), values, strict=True))  # a side that has no such key is left out
        rows = [
            {"key": c.key, **{name: side[c.key] for name, side in sides.items() if c.key in side}, "drift": c.drift}
            for c in changes
        ]
        render.print_json({"run": str(found.path), "changes": rows})
    elif not changes:
        print(f"no difference from {found.path}")
    else:
        cells = ([_scalar(side[c.key]) if c.key in side else "-" for side in values] for c in changes)
        table = [[c.key, *cell, c.drift] for c, cell in zip(changes, cells, strict=True)]
        render.print_table(["key", "in the run", "now", "drift"], table)
        print("to resume the run: free keys may differ, trajectory needs --allow-drift KEY, structural a new run")
    return 0
