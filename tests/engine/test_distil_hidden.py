"""Promises of `distil.hidden`: vectors of a BERT are compared with those of its teacher, and only where they can be."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes.text_cls import cosine_distances

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.training.checkpoints.arrays import flatten

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.fewer
SIZES = ["model=bert", "model.layers=3", "model.width=16", "model.heads=2", "model.intermediate=16"]
KEYS = [
    "recipe=bert_cls", "model.positions=16", "recipe.tokenizer.type=words", "recipe.tokenizer.max_length=16",
    "recipe.bucketing.shapes=1", "data=csv", "data.text=text", "data.label=mood", "train.batch_size=16",
    "train.tensorboard=false", "eval.every=100 epochs",
]  # fmt: skip


def test_the_distance_is_that_of_torch_over_the_real_tokens():
    rng, lengths = np.random.default_rng(0), np.array([5, 2, 0], np.int32)
    ours, theirs = (rng.normal(size=(3, 5, 4)).astype(np.float32) for _ in range(2))
    found = np.asarray(cosine_distances(jnp.asarray(ours), jnp.asarray(theirs), jnp.asarray(lengths)))
    for row, length in enumerate(lengths[:2]):
        one, other = (torch.tensor(each[row, :length]) for each in (ours, theirs))
        expected = torch.nn.CosineEmbeddingLoss()(one, other, torch.ones(length)).item()
        assert found[row] == pytest.approx(expected, rel=1e-5)
    assert found[2] == 0
    assert not np.asarray(jax.grad(lambda x: cosine_distances(jnp.asarray(ours), x, lengths).sum())(theirs)).any()


@pytest.mark.slow
def test_a_student_of_two_layers_begins_as_its_teacher_and_comes_nearer_to_it(tmp_path: Path, capsys):
    rng, rows = np.random.default_rng(0), []
    for number in range(90):
        mood = ("good", "bad")[number % 2]
        rows.append((" ".join([*rng.choice(["film", "plot", "cast"], rng.integers(1, 6)), mood]), mood))
    text = "".join(f"{words},{mood}\n" for words, mood in [("text", "mood"), *rows])
    (tmp_path / "texts.csv").write_text(text)
    keys = [*KEYS, f"data.path={tmp_path / 'texts.csv'}", f"distil.teacher={tmp_path / 'teacher'}", "distil.hidden=1"]
    bigctl.train([*keys[:-2], *SIZES, "train.steps=20"], tmp_path / "teacher", quiet=True)
    asked = ["method=structured", "layers=1", "calibration=32", "--run-dir", str(tmp_path / "two")]
    assert main(["compress", str(tmp_path / "teacher"), *asked]) == 0
    capsys.readouterr()
    begun = ["model=bert", f"model.init_from={tmp_path / 'two'}", "recipe.tokenizer.type=pretrained"]
    asked = [*keys, *begun, "train.log_every=2", "optimizer.lr=0.003", "schedule=constant"]
    bigctl.train([*asked, "train.steps=12"], tmp_path / "whole", quiet=True)
    weights = flatten(bigctl.load(str(tmp_path / "whole")).params)
    assert any("layers/1/" in name for name in weights) and not any("layers/2/" in name for name in weights)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    logged = [line["train/hidden"] for line in lines if "train/hidden" in line]
    assert 0 < logged[-1] < logged[0]
    for more, said in {
        "model.width=8": "of width 16, the student one of 8",
        "recipe.tokenizer.size=6": "another tok",
    }.items():
        with pytest.raises(ConfigError, match=said):
            bigctl.train([*keys, *SIZES, "model.layers=2", "train.steps=1", more], tmp_path / "other", quiet=True)


def test_what_has_no_such_vectors_is_refused_in_a_line(capsys):
    for keys, said in {
        ("recipe=lstm_cls", "distil.teacher=x"): "distil.hidden is for model=bert and classes of texts",
        ("recipe=bert_cls",): "distil.hidden compares with a teacher, and there is none",
    }.items():
        assert main(["train", *keys, "distil.hidden=1", "--dry-run"]) == 2
        assert said in capsys.readouterr().err
