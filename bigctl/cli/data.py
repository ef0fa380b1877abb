"""Look at a data set, prepare it, or remove its prepared form. Without a name: list the data sets known."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl import terminal
from bigctl.cli import common, data_clean, data_copies, data_sheets, data_suspects, render
from bigctl.errors import ConfigError
from bigctl.files import disk_size
from bigctl.formatting import age, size
from bigctl.runs import corpora

if TYPE_CHECKING:
    from bigctl.config.schema import Config, Data, Tfds
    from bigctl.data.cache import Prepared
    from bigctl.data.layouts.choose import BatchOptions
    from bigctl.data.preview import Column
    from bigctl.data.text.tokenization import Spec

EXAMPLES = """\
examples:
  bigctl data                                          the data sets known, and which are prepared
  bigctl data mnist5k --contact-sheet digits.png
  bigctl data csv data.path=table.csv data.label=species
  bigctl data csv data.path=homes.csv data.label=price model=mlp model.head=regression
  bigctl data recipe=cnn_cls
  bigctl data recipe=bert_cls                          texts, and as the tokens of this recipe
  bigctl data csv data.path=reviews.csv data.text=review data.label=stars
  bigctl data conll data.path=train.conll              sentences with a tag a word
  bigctl data tokens data.path=shards                  ready-made tokens: formats and sizes
  bigctl data add flats homes.csv                      write presets/data/flats.yaml after a look at the file
  bigctl data mixture data.corpora.web.path=web.bin data.corpora.books.path=books
  bigctl data cifar10 --prepare                        download and decode it now
  bigctl data digits recipe=cnn_cls recipe.augment.erase=0.5 --augmented seen.png
  bigctl data text data.path=book.txt --verify         are the files and the prepared form what they were?
  bigctl data rotten_tomatoes --suspects               examples whose label is likely wrong
  bigctl data image_folder data.path=photos --copies   pictures of test that are in training too
  bigctl data cifar10 --clean                          remove what was decoded
  bigctl data --clean --all
"""
MOST_ROWS = 40
_KEPT = {"head": "beginning", "tail": "end", "head_tail": "beginning and the end"}
_ELSEWHERE = (
    "duplicates", "cut", "words_cut", "unknown_tokens", "corpora", "documents", "characters", "bytes", "tokens",
    "packing", "left_out",
)  # fmt: skip
"""Facts that are shown in a place of their own; what was left out is among the notes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument("--prepare", action="store_true", help="prepare it, if it is not; download it, if need be")
    parser.add_argument("--rebuild", action="store_true", help="prepare it again")
    parser.add_argument("--verify", action="store_true", help="read all of it, files and prepared form, to be sure")
    parser.add_argument("--clean", action="store_true", help="remove its prepared form")
    parser.add_argument("--all", action="store_true", help="with --clean: of every data set")
    data_sheets.add_arguments(parser)
    data_suspects.add_arguments(parser)
    data_copies.add_arguments(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.overrides[:1] == ["add"]:
        return _add(options)
    options.overrides = [o if "=" in o or o.startswith("~") else f"data={o}" for o in options.overrides]
    if options.clean and _looks(options):
        raise ConfigError("--clean goes with nothing else than --all", hint="prepare in a second command")
    if options.all:
        if not options.clean or options.overrides:
            raise ConfigError("--all is for `bigctl data --clean --all`")
        return data_clean.clean_all(options)
    if not options.overrides:
        if options.clean or _looks(options):
            raise ConfigError(
                "no data set is named", hint="bigctl data NAME ...; to remove all prepared ones: --clean --all"
            )
        return _list(options)
    alone = [flag for flag in ("--suspects", "--copies") if getattr(options, flag[2:])]
    if alone and (
        len(alone) > 1 or options.prepare or options.rebuild or options.verify or data_sheets.wanted(options)
    ):
        raise ConfigError(f"{alone[0]} goes with nothing else than --most and --json", hint="give a command to each")
    from bigctl.data.files import file_index

    wanted = _configuration(options)
    if options.clean:
        return data_clean.clean(options, wanted.data, wanted.form)
    if options.suspects:
        return data_suspects.show(options, wanted.data, wanted.regression)
    if options.copies:
        return data_copies.show(options, wanted.data, wanted.form)
    with file_index.distrust() if options.verify else contextlib.nullcontext():
        return _show(options, wanted)


def _looks(options: argparse.Namespace) -> bool:
    """Whether a set is to be prepared or looked at in a way that a flag names."""
    asked = (options.prepare, options.rebuild, options.verify, options.suspects, options.copies)
    return any(asked) or bool(data_sheets.wanted(options))


def _add(options: argparse.Namespace) -> int:
    from bigctl.cli import data_add

    if options.clean or options.prepare or options.rebuild or options.all or data_sheets.wanted(options):
        raise ConfigError("bigctl data add looks at files and no more", hint="prepare in a second command")
    return data_add.run(options, options.overrides[1:])


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be looked at: the `data` part of a configuration, and what else its prepared form depends on.

    Attributes:
        regression: whether targets are numbers.
        tokenizer: a `tokenization.Spec`, where a recipe is composed that needs one.
        batches: `prepare`'s `BatchOptions`, likewise.
        whole: all of the configuration.
    """

    data: Data
    regression: bool
    tokenizer: Spec | None
    batches: BatchOptions | None
    whole: Config

    @property
    def form(self) -> dict[str, Any]:
        """What `prepare` wants to know besides `data`."""
        return {"regression": self.regression, "tokenizer": self.tokenizer}


def _configuration(options: argparse.Namespace) -> Wanted:
    """Raises ConfigError if a key is missing."""
    config = common.composed_data(options, "data")
    tokenizer, batches = None, None
    data = config.data
    if config.tokenizer is not None and not options.clean:  # all forms of a set are cleaned together
        from bigctl.engine import resolve

        tokenizer = resolve.tokenizer_spec(config)
        batches = resolve.batch_options(config)
    elif getattr(config.recipe, "augment", None) is not None:
        from bigctl.engine import resolve

        config = resolve.with_architecture(config, resolve.locate_weights(config))  # pictures of the size of these
        data = resolve.data_of(config)
    return Wanted(data, config.is_regression, tokenizer, batches, dataclasses.replace(config, data=data))


# ---------------------------------------------------------------------------------------------------------- one set


def _show(options: argparse.Namespace, wanted: Wanted) -> int:
    from bigctl.data import cache, notes, preview
    from bigctl.data.preparation import prepare

    config = wanted.data
    folder = cache.cache_folder(config, **wanted.form)
    was_there = folder.is_dir()
    if config.kind == "tfds" and not (was_there or options.prepare or options.rebuild or data_sheets.wanted(options)):
        return _unprepared(options, cast("Tfds", config), folder)
    dataset = prepare.prepare(
        config, rebuild=options.rebuild, **wanted.form, batches=wanted.batches or prepare.NO_OPTIONS
    )
    facts = {
        "prepared": True,
        **preview.describe(dataset),
        "notes": notes.notes_of(dataset),
        "bytes": disk_size(folder),
        "prepared_now": options.rebuild or not was_there,
        "verified": options.verify,
    }
    table = preview.columns(dataset) if dataset.features.encoder else []
    texts = preview.first_texts(dataset) if dataset.features.kind == "text" else []
    opening = preview.opening(dataset) if dataset.features.kind == "stream" else []
    packed = preview.first_documents(dataset) if "packing" in dataset.info else []
    for flag, file in data_sheets.wanted(options):
        data_sheets.write(dataset, wanted.whole, flag, file)
    if options.json:
        facts["columns"] = [dataclasses.asdict(column) for column in table]
        facts["texts"] = [{"class": name, "texts": first} for name, first in texts]
        facts["documents"] = [{"tokens": count, "text": text} for count, text in packed]
        sheets = {flag[2:].replace("-", "_"): str(file) for flag, file in data_sheets.wanted(options)}
        render.print_json({**facts, "contact_sheet": None, **sheets})
        return 0
    print_facts(facts, config.kind)
    if table:
        print_columns(table, preview.targets(dataset))
    elif texts:
        render.print_texts(facts["splits"], texts)
    elif packed:
        render.print_documents(facts["info"]["packing"], packed)
    elif opening:
        print("it begins")
        print("\n".join(f"  {line}" for line in opening))
    elif dataset.features.kind == "image" and _truecolor():
        room = shutil.get_terminal_size().columns // 17  # pictures of 16 columns and a gap
        picked = [images[0] for _, images in preview.pick(dataset, each=1) if len(images)]
        print("\n".join(preview.blocks(picked[:room], side=16)) if room else "", file=terminal.unescaped(sys.stdout))
    for flag, file in data_sheets.wanted(options):
        print(f"{'contact sheet' if flag == '--contact-sheet' else 'augmented'}: {file}")
    return 0


def _unprepared(options: argparse.Namespace, config: Tfds, folder: Path) -> int:
    if options.json:
        render.print_json({"prepared": False, "kind": config.kind, "path": str(folder), "bytes": 0})
    else:
        print(
            f"{config.dataset} is not prepared; it is downloaded and decoded by\n  {' '.join(options.argv)} --prepare"
        )
    return 0


def print_facts(facts: dict[str, Any], source: str) -> None:
    """What a data set holds, one fact a line."""
    for name, value in (facts["info"] | {"notes": facts.get("notes") or []}).items():
        if name not in _ELSEWHERE:
            for place, item in enumerate(_items(value)):
                print(f"{'' if place else name:<12} {item}")
    kind = "" if facts["info"].get("source") == source else f"; source of kind {source}"
    print(f"{'examples':<12} {_what(facts)}{kind}")
    if facts["mean"] and facts["kind"] == "image":
        mean, std = (" ".join(f"{x:.4f}" for x in facts[key]) for key in ("mean", "std"))
        print(f"{'pixels':<12} mean {mean}, std {std} (of the training split, from 0 to 1)")
    if facts["tokenizer"]:
        t = facts["tokenizer"]
        print(f"{'tokenizer':<12} {t['type']}, {t['vocab_size']:,} tokens; sha256 {t['sha256']}")
    if facts["tokenizer"] and "max_length" in facts["tokenizer"]:
        print(f"{'length':<12} {t['max_length']} tokens at most; of longer texts the {_KEPT[t['truncate']]} is kept")
    for line in _duplicates(facts["info"].get("duplicates")):
        print(f"{'duplicates':<12} {line}")
    print(f"{'fingerprint':<12} {facts['fingerprint']}")
    now = ", prepared just now" if facts["prepared_now"] else ""
    now += ", all of it read and verified" if facts.get("verified") else ""
    print(f"{'on disk':<12} {size(facts['bytes'])} in {facts['path']}{now}")
    splits = facts["splits"]
    if facts["classes"]:
        rows = [
            [name, *(f"{part['classes'][i]:,}" for part in splits.values())]
            for i, name in enumerate(facts["classes"][:MOST_ROWS])
        ]
        if "without_class" in splits["train"]:  # an example may have several classes: the rows do not add up
            rows.append(["(none)", *(f"{part['without_class']:,}" for part in splits.values())])
        tags = facts["target"] == "token_class"
        if tags:
            rows.append(["all words", *(f"{sum(part['classes']):,}" for part in splits.values())])
        rows.append(["sentences" if tags else "total", *(f"{part['examples']:,}" for part in splits.values())])
        render.print_table(("tag" if tags else "class", *splits), rows)
        if (more := len(facts["classes"]) - MOST_ROWS) > 0:
            print(f"... and {more} more classes")
    elif facts["kind"] == "stream":
        names = [name for name in ("documents", "characters", "bytes", "tokens") if name in splits["train"]]
        rows = [[split, *(f"{part[name]:,}" for name in names)] for split, part in splits.items()]
        render.print_table(("split", *names), rows)
        if facts["info"].get("corpora"):
            render.print_table(*corpora.table(facts["info"]["corpora"], list(splits)))
    elif facts["kind"] == "text":
        render.print_table(("split", "examples"), [(s, f"{p['examples']:,}") for s, p in splits.items()])
    else:
        render.print_table(
            ("split", "examples", "target: min", "mean", "max"),
            [(s, f"{p['examples']:,}", *(f"{v:.4g}" for v in p["target"].values())) for s, p in splits.items()],
        )


def _what(facts: dict[str, Any]) -> str:
    shape = "x".join(str(n) for n in facts["shape"])
    if facts["kind"] == "stream":
        if "packing" in facts["info"]:
            return f"documents, packed into windows of {shape} tokens"
        what = corpora.counted(facts["info"].get("corpora") or ()) or "one long text"
        return f"{what} in windows of {shape} tokens" if shape else what
    if facts["kind"] == "text":
        single = "sentences with a tag a word" if facts["target"] == "token_class" else "texts"
        return "pairs of texts" if facts["pairs"] else single
    return f"images {shape}, uint8" if facts["kind"] == "image" else f"rows of {shape} features"


def _items(value: object) -> list[str]:
    """A fact as lines: a list of names is one, one of sentences has one an item, a dictionary has one a name, with what
    is in it on the same line."""
    if isinstance(value, dict):
        return [f"{name} {', '.join(_items(item))}" for name, item in value.items()]
    if isinstance(value, list) and value and all(isinstance(item, str) and " " not in item for item in value):
        return [", ".join(value)]
    if isinstance(value, list):
        return [", ".join(_items(item)) if isinstance(item, dict) else str(item) for item in value]
    return [str(value)]


def _duplicates(found: dict[str, Any] | None) -> list[str]:
    """What there is to say of texts that occur more than once, one line a split."""
    lines = []
    for split, facts in (found or {}).items():
        if not isinstance(facts, dict):
            continue
        count = facts.get("repeated") or facts.get("in_train")
        if count:
            what = "repeat an earlier text" if "repeated" in facts else "are in the training split too"
            other = f", {facts['other_label']:,} of them with another label" if facts.get("other_label") else ""
            lines.append(f"{split}: {count:,} {what}{other}")
    return lines or (["none"] if found else [])


def print_columns(table: list[Column], targets: list[str]) -> None:
    """The columns of a table with the first rows, turned on their side."""
    header = ("column", "kind", "mean ± std, or values", *(f"row {i}" for i in range(1, len(targets) + 1)))
    rows = [(c.name, c.kind + (", some missing" if c.missing else ""), c.summary, *c.samples) for c in table]
    render.print_table(header, [("(target)", "", "", *targets), *rows[:MOST_ROWS]])
    if len(rows) > MOST_ROWS:
        print(f"... and {len(rows) - MOST_ROWS} more columns")


def _truecolor() -> bool:
    return sys.stdout.isatty() and os.environ.get("COLORTERM") in ("truecolor", "24bit")


# ---------------------------------------------------------------------------------------------------------- all sets


def _list(options: argparse.Namespace) -> int:
    from bigctl.config import presets
    from bigctl.data import cache

    found = cache.prepared()
    known: list[dict[str, Any]] = [
        {"name": name, "description": presets.headline(path), "caches": [_entry(p) for p in found if p.label == name]}
        for name, path in sorted(presets.files(presets.roots(options.config_dir), "data").items())
    ]
    names = {entry["name"] for entry in known}
    own = [_entry(p) for p in found if p.label not in names]
    if options.json:
        render.print_json({"known": known, "own": own, "bytes": sum(p.bytes for p in found)})
        return 0
    rows = []
    for entry in known:
        on_disk = sum(c["bytes"] for c in entry["caches"])
        rows.append((entry["name"], size(on_disk) if on_disk else "", entry["description"]))
    render.print_table(("data=", "prepared", ""), rows)
    if own:
        print("\nprepared from files or names of your own:")
        table = [(p["label"], size(p["bytes"]), p["kind"], age(p["when"]), p["path"]) for p in own]
        render.print_table(("label", "size", "kind", "age", "folder"), table)
    print(f"\n{size(sum(p.bytes for p in found))} prepared; `bigctl data NAME` shows one")
    return 0


def _entry(found: Prepared) -> dict[str, Any]:
    return {**dataclasses.asdict(found), "path": str(found.path)}
