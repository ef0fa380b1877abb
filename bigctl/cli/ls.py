"""List what can be chosen (recipes, models, optimizers, schedules, data, meshes, experiments), or existing runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from bigctl import formatting
from bigctl.cli import common, render

EXAMPLES = """\
examples:
  bigctl ls
  bigctl ls models
  bigctl ls data mnist                 names or descriptions with "mnist" in them
  bigctl ls data '*_folder' --json
  bigctl ls runs
  bigctl ls --config-dir my_presets    presets of your own, with where they come from
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", metavar="KIND", help="models, data, ..., or runs; default: all but runs")
    parser.add_argument("filter", nargs="?", metavar="FILTER", help="part of a name or description, or a glob")
    common.add_sources(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.config import presets

    roots = presets.roots(options.config_dir)
    if options.plugin:
        from bigctl.config import plugins

        plugins.load(options.plugin)
    known = kinds(roots)
    chosen = [_kind(options.kind, known)] if options.kind else [k for k in known if k != "runs"]
    listing = {}
    for kind in chosen:
        entries = runs() if kind == "runs" else options_of(roots, known[kind])
        listing[kind] = [entry for entry in entries if _matches(options.filter, entry)]
    if options.json:
        render.print_json(listing)
    else:
        _print(listing, known, titled=options.kind is None)
    return 0


def kinds(roots: Sequence[Any]) -> dict[str, str]:
    """What can be listed -> the group of the tree it stands for; in the order of composition, the runs last."""
    from bigctl.config import presets, schema

    groups = [g for g in [*schema.GROUPS, *presets.groups(roots)] if g in schema.GROUPS or presets.files(roots, g)]
    return {**{_plural(group): group for group in dict.fromkeys(groups)}, "runs": "run"}


def options_of(roots: Sequence[Any], group: str) -> list[dict[str, str]]:
    """The options of a group: name, headline, and the file it comes from, as `show` calls it."""
    from bigctl.config import presets, schema

    entries = []
    for name, path in sorted(presets.files(roots, group).items()):
        root = next(root for root in roots if path.is_relative_to(root.path))
        origin = f"{group}/{path.name}" if root is roots[-1] else f"{root.label}/{group}/{path.name}"
        entries.append({"name": name, "headline": presets.headline(path), "origin": origin})
    for cls in schema.components():  # of a plugin, and not yet to be chosen
        name = schema._kind_of(cls)
        ours = cls.__module__.startswith(schema.__name__)
        if cls.group_name == group and not ours and name not in presets.files(roots, group):
            text = f"needs a preset: {group}/{name}.yaml with `defaults: [_{name}, _self_]`"
            entries.append({"name": name, "headline": text, "origin": cls.__module__})
    return entries


def runs() -> list[dict[str, str]]:
    """The runs under runs/ with their status, the latest first."""
    from bigctl.errors import RunError
    from bigctl.runs.directory import ROOT, RunDirectory

    entries = []
    for file in sorted(ROOT.glob("*/run.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        try:
            status = RunDirectory(file.parent).status()
        except RunError:
            status = "unreadable"
        text = f"{status}, {formatting.age(file.stat().st_mtime)} ago"
        entries.append({"name": file.parent.name, "headline": text, "status": status, "origin": str(file.parent)})
    return entries


def _plural(group: str) -> str:
    return group if group == "data" else f"{group}es" if group.endswith("sh") else f"{group}s"


def _kind(word: str, known: dict[str, str]) -> str:
    """The kind that a word names, in the plural or the singular. Raises ConfigError with close matches."""
    for kind, group in known.items():
        if word in (kind, group):
            return kind
    import difflib

    from bigctl.errors import ConfigError

    close = difflib.get_close_matches(word, [*known, *known.values()], n=1)
    guess = f"; did you mean `bigctl ls {close[0]}`?" if close else ""
    raise ConfigError(f"there is nothing called {word!r} to list{guess}", hint=f"one of: {', '.join(known)}")


def _matches(pattern: str | None, entry: dict[str, str]) -> bool:
    from fnmatch import fnmatchcase

    wanted = (pattern or "").lower()
    texts = [entry["name"].lower(), entry["headline"].lower()]
    return any(wanted in text or fnmatchcase(text, wanted) for text in texts)


def _print(listing: dict[str, list[dict[str, str]]], known: dict[str, str], *, titled: bool) -> None:
    """Name and headline; the origin too where it is not the packaged tree."""
    width = max((len(entry["name"]) for entries in listing.values() for entry in entries), default=0)
    for kind, entries in listing.items():
        if titled and entries:
            print(f"{kind}:  {known[kind]}=NAME")
        for entry in entries:
            own = kind != "runs" and entry["origin"] != f"{known[kind]}/{entry['name']}.yaml"
            tail = f"  ({entry['origin']})" if own else ""
            begin = f"{'  ' if titled else ''}{entry['name']:<{width}}  "
            render.print_wrapped(f"{begin}{entry['headline']}{tail}".rstrip(), len(begin))
    if not any(listing.values()):
        print(f"bigctl: no {' or '.join(listing)} here", file=sys.stderr)
