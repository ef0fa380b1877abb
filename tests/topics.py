"""A run that tells two topics apart, trained once a session on texts made here."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest

from tests.conftest import Cli

WORDS = {
    "kitchen": ["bread", "oven", "salt", "butter", "flour", "spoon", "soup", "面包", "pepper", "onion"],
    "sky": ["cloud", "moon", "star", "comet", "rain", "wind", "planet", "月亮", "thunder", "storm"],
}
COMMON = ["the", "a", "of", "and", "with", "under", "before", "very", "little"]
DATA = ["data=csv", "data.path=topics.csv", "data.text=words", "data.label=topic"]
RECIPE = ["recipe=lstm_cls", "recipe.tokenizer.max_length=24", "recipe.tokenizer.size=100", "recipe.bucketing.shapes=2"]
MODEL = ["model.embedding=16", "model.hidden=16", "model.dropout=0", "optimizer.lr=0.03", "schedule=constant"]
LENGTH = ["train.batch_size=32", "train.steps=30", "train.tensorboard=false", "data.test_fraction=0.3"]
LONGEST = 24


def rows(seed: int = 0, count: int = 200) -> list[tuple[str, str]]:
    """Pairs (text, topic); every tenth text has the wrong topic."""
    draw, found = random.Random(seed), []
    for number in range(count):
        topic = ("kitchen", "sky")[number % 2]
        words = draw.choices(WORDS[topic], k=draw.randint(2, 9)) + draw.choices(COMMON, k=draw.randint(1, 5))
        draw.shuffle(words)
        wrong = number % 20 in (3, 8)
        found.append((" ".join(words), ("sky" if topic == "kitchen" else "kitchen") if wrong else topic))
    return found


def write(folder: Path) -> None:
    with (folder / "topics.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("words", "topic"), *rows()])


def trained(factory: pytest.TempPathFactory) -> Cli:
    """The command in a folder with the run `topics`, whose output is kept in topics.out."""
    folder = factory.getbasetemp() / "topics"
    cli = Cli(folder)
    if not folder.exists():
        folder.mkdir()
        write(folder)
        done = cli("train", *RECIPE, *DATA, *MODEL, *LENGTH, "--name", "topics")
        (folder / "topics.out").write_text(done.stdout, encoding="utf-8")
    return cli
