"""A run that finds people and places, trained once a session on sentences made here."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.conftest import Cli

PEOPLE = ["Ada", "Boole", "Curie Marie", "Darwin", "Euler Leonhard", "Fermi"]
PLACES = ["Rome", "Paris", "New York", "Oslo", "Buenos Aires", "Lima"]
FRAMES = [
    "{} lives in {} .",
    "in {1} we met {0} yesterday",
    "{} and {2} left {} for {3}",
    "nobody knows {}",
    "it rains",
]
TAGS = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
RECIPE = ["recipe=lstm_tag", "recipe.tokenizer.max_length=24", "recipe.tokenizer.size=100", "recipe.bucketing.shapes=2"]
MODEL = ["model.embedding=16", "model.hidden=16", "model.dropout=0", "optimizer.lr=0.03", "schedule=constant"]
LENGTH = ["train.batch_size=16", "train.steps=60", "train.tensorboard=false"]
DATA = ["data=conll", "data.path=train.conll", "data.test_path=test.conll"]


def sentences(seed: int, count: int) -> list[list[tuple[str, str]]]:
    """Sentences as (word, tag) pairs, IOB2."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        names = draw.sample(PEOPLE, 2), draw.sample(PLACES, 2)
        marks = {"{0}": ("PER", names[0][0]), "{1}": ("LOC", names[1][0])}
        marks |= {"{2}": ("PER", names[0][1]), "{3}": ("LOC", names[1][1])}
        frame, row = draw.choice(FRAMES).replace("{}", "{0}", 1).replace("{}", "{1}", 1), []
        for part in frame.split():
            kind, name = marks.get(part, ("", part))
            row += [(word, f"{'I' if n else 'B'}-{kind}" if kind else "O") for n, word in enumerate(name.split())]
        found.append(row)
    return found


def conll(rows: list[list[tuple[str, str]]]) -> str:
    return "\n\n".join("\n".join(f"{word} {tag}" for word, tag in row) for row in rows) + "\n"


def json_lines(rows: list[list[tuple[str, str]]]) -> str:
    """Tags as numbers of `TAGS`."""
    records = [{"tokens": [w for w, _ in row], "ner_tags": [TAGS.index(t) for _, t in row]} for row in rows]
    return "\n".join(map(json.dumps, records)) + "\n"


def write(folder: Path) -> None:
    for name, rows in (("train", sentences(0, 160)), ("test", sentences(1, 40))):
        (folder / f"{name}.conll").write_text(conll(rows))
        (folder / f"{name}.jsonl").write_text(json_lines(rows))


def trained(factory: pytest.TempPathFactory) -> Cli:
    """The command in a folder with the run `names`, whose output is kept in names.out."""
    folder = factory.getbasetemp() / "tagging"
    cli = Cli(folder)
    if not folder.exists():
        folder.mkdir()
        write(folder)
        done = cli("train", *RECIPE, *DATA, *MODEL, *LENGTH, "--name", "names")
        (folder / "names.out").write_text(done.stdout + done.stderr, encoding="utf-8")
    return cli
