"""A language model of one layer with a chat template, trained once a session on a line of text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import bigctl

KEYS = ["recipe=gpt_lm", "data=text", "recipe.tokenizer.type=characters", "model=gpt_nano", "model.layers=1"]
KEYS += ["model.width=32", "model.heads=2", "model.intermediate=64", "model.context=32", "recipe.block=32"]
KEYS += ["train.steps=60", "train.batch_size=16", "train.tensorboard=false", "optimizer=adamw", "optimizer.lr=0.005"]
KEYS += ["schedule=constant", "recipe.sample_tokens=0"]


def trained(factory: pytest.TempPathFactory) -> Path:
    """The run, called `writer`."""
    folder = factory.getbasetemp() / "served_writer"
    if not folder.exists():
        folder.mkdir()
        (folder / "text.txt").write_text("to be or nothing, is a question\n" * 400, encoding="utf-8")
        bigctl.train([*KEYS, f"data.path={folder / 'text.txt'}"], folder / "writer", quiet=True)
        template = "{% for message in messages %}{{ message.content }} {% endfor %}or"
        kept = {"schema": 1, "special": {}, "ends": [], "chat_template": template}
        (folder / "writer" / "generation.json").write_text(json.dumps(kept))
    return folder / "writer"
