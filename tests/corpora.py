"""Two small corpora, as ready-made tokens and as text, and a training of seconds on both."""

from __future__ import annotations

from pathlib import Path

import numpy as np

WEB = "".join(f"page {i}: cats run far away from {i * 7 % 10} dogs.\n" for i in range(150))
BOOKS = "".join(f"verily thou shalt walk {i} miles;\n" for i in range(60))
BLOCK = 8
TINY = [
    "recipe=gpt_lm", "model.layers=1", "model.width=16", "model.heads=2", "model.intermediate=32", "model.context=16",
    "train.batch_size=4", "train.steps=8", "eval.every=4", "recipe.sample_tokens=0", "train.tensorboard=false",
    "checkpoint.every=4", "recipe.tokenizer.type=bytes", "data=mixture",
]  # fmt: skip


def write(folder: Path) -> Path:
    (folder / "books").mkdir(parents=True)
    np.frombuffer(WEB.encode(), np.uint8).astype("<u2").tofile(folder / "web.bin")
    (folder / "web.txt").write_text(WEB)
    for number, part in enumerate(np.array_split(np.frombuffer(BOOKS.encode(), np.uint8), 3)):
        part.astype("<u2").tofile(folder / "books" / f"{number}.bin")
    (folder / "books.txt").write_text(BOOKS)
    return folder


def given(folder: Path, web: float | str = 0.7, books: float | str = 0.3) -> list[str]:
    return [
        f"data.corpora.web.path={folder}/web.bin", f"data.corpora.web.weight={web}",
        f"data.corpora.books.path={folder}/books", f"data.corpora.books.weight={books}",
    ]  # fmt: skip
