"""The experiments by which `compare_versions.py` holds two checkouts against each other, and the data they need.

Small, but each with something that has its own code: optimizers, schedules, averages, accumulation, precision, batch
norm, augmentation, pairs of texts, sharded parameters. Logs, evaluations and checkpoints fall on the step at which a
run is stopped, so that a run that was stopped has the same lines as one that was not.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import random
from dataclasses import dataclass
from pathlib import Path

SUMMARY = ("recipe", "status", "step", "epoch", "stopped", "skipped", "rewinds", "selected_step", "selected_by",
           "metrics", "confusion", "classes", "parameters", "data")  # fmt: skip
"""What is compared of summary.json: what does not measure time."""

CADENCE = ("train.log_every=5", "eval.every=10", "checkpoint.every=10")


@dataclass(frozen=True)
class Case:
    """One experiment.

    Attributes:
        name: begins with the recipe.
        overrides: of the command line; {data} stands for the folder of the data made here.
        mesh: more of them where there are several devices.
        steps: how long it is.
        stop: where it is stopped to be resumed.
        quick: whether it is of the short list.
        use: a command, and its words, that uses the run.
    """

    name: str
    overrides: tuple[str, ...]
    mesh: tuple[str, ...] = ()
    steps: int = 40
    stop: int = 20
    quick: bool = False
    use: tuple[str, ...] = ()

    @property
    def is_sweep(self) -> bool:
        return self.name.startswith("sweep")

    def sweep(self) -> list[str]:
        """The words of a sweep into the folder `run`."""
        return ["sweep", *self.overrides, f"train.steps={self.steps}", "--quiet", "--sweep-dir", "run"]

    def placed(self, data: Path) -> Case:
        """This with the folder of the data in its place."""
        overrides, use = (tuple(w.replace("{data}", str(data)) for w in part) for part in (self.overrides, self.use))
        return dataclasses.replace(self, overrides=overrides, use=use)


def case(name: str, words: str, **more: object) -> Case:
    return Case(name, (*CADENCE, *words.split()), **more)  # type: ignore[arg-type]


_TEXTS = "recipe.bucketing.shapes=2 recipe.tokenizer.max_length=32 train.batch_size=16"
_WORDS = f"{_TEXTS} recipe.tokenizer.type=words recipe.tokenizer.size=200"
_BERT = "model=bert model.layers=2 model.width=32 model.heads=2 model.intermediate=64 model.positions=32"
_LM = "recipe=gpt_lm data=text data.path={data}/story.txt model.layers=2 model.width=32 recipe.sample_tokens=20"
_STUDY = "recipe=mlp_cls data=breast_cancer model.hidden=[8] train.tensorboard=false"

CASES = [
    case(
        "mlp_cls adamw cosine",
        "recipe=mlp_cls data=breast_cancer schedule.horizon=40 schedule.warmup=5",
        quick=True, use=("predict", "{data}/cells.csv"),
    ),
    case(
        "mlp_cls muon accumulate",
        "recipe=mlp_cls optimizer=muon optimizer.clip=1 train.accumulate=4 "
        "schedule=constant recipe.label_smoothing=0.1",
        mesh=("mesh=fsdp", "mesh.min_shard=1"),
    ),
    case(
        "mlp_cls lion bfloat16",
        "recipe=mlp_cls optimizer=lion schedule=linear schedule.horizon=40 train.precision=bfloat16 train.ema=0.9 "
        "model.norm=batch recipe.class_weights=balanced train.divergence.policy=skip train.divergence.deviations=6",
    ),
    case(
        "mlp_cls regression",
        "recipe=mlp_cls model.head=regression data=csv data.path={data}/homes.csv data.label=price schedule=step "
        "schedule.horizon=40 optimizer=sgd optimizer.lr=0.01",
        quick=True, use=("predict", "{data}/homes.csv"),
    ),
    case(
        "mlp_cls early stop",
        "recipe=mlp_cls optimizer=adagrad schedule=constant train.early_stop.patience=1 eval.metric=val/loss "
        "train.steps_per_dispatch=3",
    ),
    case(
        "cnn_cls digits batch norm",
        "recipe=cnn_cls data=digits model.channels=[8,16] model.norm=batch model.dropout=0.2 train.ema=0.9 "
        "train.batch_size=32 schedule.horizon=40",
        mesh=("mesh=fsdp", "mesh.min_shard=1"), quick=True,
    ),
    case(
        "cnn_cls mnist5k muon",
        "recipe=cnn_cls data=mnist5k optimizer=muon model.channels=[8,16] recipe.augment.crop=2 train.batch_size=32 "
        "train.accumulate=2 schedule.horizon=20 data.resident_mib=1",
        steps=20, stop=10,
    ),
    case(
        "lstm_cls words",
        f"recipe=lstm_cls data=jsonl data.path={{data}}/reviews.jsonl data.text=text data.label=mood {_WORDS} "
        "model.embedding=16 model.hidden=16 schedule.horizon=40",
        quick=True, use=("predict", "--text", "the plot is a delight", "--text", "dull"),
    ),
    case(
        "bert_cls pairs",
        f"recipe=bert_cls {_BERT} {_WORDS} data=tsv data.path={{data}}/pairs.tsv data.text=first data.text_pair=second "
        "data.label=same optimizer.layer_decay=0.8 schedule.horizon=20",
        mesh=("mesh=fsdp", "mesh.min_shard=1"), steps=20, stop=10,
        use=("predict", "--text", "a film", "--text-pair", "the film"),
    ),
    case(
        "bert_cls frozen",
        f"recipe=bert_cls {_BERT} {_WORDS} data=csv data.path={{data}}/reviews.csv data.text=text data.label=mood "
        "optimizer.freeze=[embeddings] optimizer.clip=1 schedule.horizon=20 train.precision=bfloat16",
        steps=20, stop=10, quick=True,
    ),
    case(
        "bert_mlm bpe",
        f"recipe=bert_mlm {_BERT} {_TEXTS} data=jsonl data.path={{data}}/reviews.jsonl data.text=text data.label=null "
        "recipe.tokenizer.type=bpe recipe.tokenizer.size=300 schedule.horizon=20",
        mesh=("mesh=tensor", "mesh.tensor=2", "mesh.data=4"), steps=20, stop=10, quick=True,
    ),
    case(
        "gpt_lm muon characters",
        f"{_LM} schedule.horizon=20",
        mesh=("mesh=fsdp_tensor", "mesh.min_shard=1", "train.batch_size=16"), steps=20, stop=10, quick=True,
        use=("generate", "--prompt", "the", "--max-new-tokens", "40", "--seed", "3"),
    ),
    case(
        "gpt_lm llama scanned",
        f"{_LM} model=llama_tiny model.heads=2 model.kv_heads=1 model.intermediate=64 model.scan=true recipe.block=16 "
        "recipe.z_loss=1e-4 optimizer=muon schedule.horizon=20 recipe.tokenizer.type=bytes train.ema=0.9",
        mesh=("mesh=fsdp", "mesh.min_shard=1", "train.batch_size=16"), steps=20, stop=10,
    ),
    case("sweep of processes", f"{_STUDY} optimizer.lr=1e-3,1e-2 seed=range(2) --jobs 1 --packed no", quick=True),
    case("sweep packed", f"{_STUDY} optimizer.lr=1e-3,3e-3,1e-2 seed=range(2) --packed yes"),
    case("sweep tpe median", f"{_STUDY} optimizer.lr=tag(log,interval(1e-4,1e-1)) sweep.sampler=tpe sweep.trials=5 "
         "sweep.pruner=median sweep.warmup_trials=2 --jobs 1 --packed no"),
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- the data

_GOOD, _BAD = ("delight", "warm", "clever", "moving"), ("dull", "cold", "clumsy", "boring")
_PLAIN = ("the", "a", "film", "plot", "actor", "is", "was", "and", "with", "scene", "music", "story", "of", "in")


def write_data(folder: Path) -> Path:
    """Tables, texts and pairs of texts that are the same wherever they are written; gives the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    homes = [["area", "rooms", "heating", "built", "price"]]
    for _ in range(240):
        area, rooms, heating = draw.uniform(30, 200), draw.randint(1, 7), draw.choice(["gas", "oil", "heat pump", ""])
        built = draw.choice([str(draw.randint(1900, 2020)), ""])
        price = 2 * area + 10 * rooms + 5 * len(heating) + draw.gauss(0, 5)
        homes.append([f"{area:.1f}", str(rooms), heating, built, f"{price:.2f}"])
    _write_rows(folder / "homes.csv", homes)
    reviews = [_review(draw, number % 2) for number in range(320)]
    _write_rows(folder / "reviews.csv", [["text", "mood"], *reviews])
    records = [json.dumps({"text": text, "mood": mood}) for text, mood in reviews]
    _write(folder / "reviews.jsonl", "\n".join(records) + "\n")
    pairs = [["first", "second", "same"]]
    for _ in range(240):
        (a, mood), (b, other) = (_review(draw, draw.randint(0, 1)) for _ in range(2))
        pairs.append([a, b, "yes" if mood == other else "no"])
    _write_rows(folder / "pairs.tsv", pairs, separator="\t")
    words = [*_PLAIN, *_GOOD, *_BAD]
    _write(folder / "story.txt", "\n".join(" ".join(draw.choices(words, k=12)) + "." for _ in range(400)) + "\n")
    _write_rows(folder / "cells.csv", _cells())
    return folder


def _review(draw: random.Random, good: int) -> list[str]:
    words = draw.choices(_PLAIN, k=draw.randint(3, 28)) + draw.choices(_GOOD if good else _BAD, k=2)
    draw.shuffle(words)
    return [" ".join(words), "good" if good else "bad"]


def _cells() -> list[list[str]]:
    """Rows as `mlp_cls` on breast cancer predicts them."""
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    return [[str(name) for name in found.feature_names], *([str(x) for x in row] for row in found.data[:20])]


def _write_rows(file: Path, rows: list[list[str]], separator: str = ",") -> None:
    import io

    stream = io.StringIO()
    csv.writer(stream, delimiter=separator, lineterminator="\n").writerows(rows)
    _write(file, stream.getvalue())


def _write(file: Path, text: str) -> None:
    """Unless it is there already, with its time of change, by which a cache knows it."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
