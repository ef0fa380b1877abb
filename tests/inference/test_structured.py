"""Promises of `bigctl compress method=structured`: what is left is a smaller network that computes what the larger one
does without the parts that went, and a run like any other."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.config import compose as composing
from bigctl.data.dataset import Features
from bigctl.engine import experiment
from bigctl.errors import ConfigError, RunError
from bigctl.inference.compression import pareto, parts, structured
from bigctl.inference.compression.method import SHARES, Method
from bigctl.inference.compression.sized import Sized
from bigctl.training.checkpoints.arrays import flatten
from tests import small

pytestmark = [pytest.mark.usefixtures("briefly"), pytest.mark.fewer]

CASES = {
    "bert": ["recipe=bert_cls", "recipe.tokenizer.type=words", "recipe.tokenizer.max_length=16", "model=bert_tiny",
             "model.layers=1", "model.width=8", "model.heads=4", "model.intermediate=12", "model.positions=16",
             "model.lora.rank=2", "model.lora.targets=[query,output,up]"],
    "llama": ["recipe=gpt_lm", "model=llama", "model.layers=2", "model.width=16", "model.heads=4", "model.kv_heads=2",
              "model.intermediate=12", "model.context=16"],
    "cnn": ["recipe=cnn_cls", "model.channels=[6,8]", "model.hidden=[10,12]", "model.norm=batch"],
    "bottleneck": ["recipe=resnet_cls", "model=resnet18", "model.blocks=[1]", "model.width=8",
                   "model.bottleneck=true"],
}  # fmt: skip


def network(name: str) -> tuple[Sized, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A new network, its weights without any zeros, and a batch."""
    config = composing.compose(CASES[name]).config
    rng, classes = np.random.default_rng(0), ("a", "b", "c")
    label = np.array([0, 1, 2], np.int32)
    tokens = rng.integers(0, 20, (3, 16)).astype(np.int32)
    if name == "llama":
        features = Features("stream", (16,), None, tokenizer={"vocab_size": 20})
        batch = {"inputs": tokens, "targets": np.roll(tokens, -1, 1)}
    elif name == "bert":
        features = Features("text", (16,), classes, tokenizer={"vocab_size": 20, "pad": 0})
        lengths = np.array([16, 9, 4], np.int32)
        batch = {"inputs": tokens, "lengths": lengths, "segment_start": lengths, "label": label}
    else:
        features = Features("image", (8, 8, 1), classes, mean=(0.5,), std=(0.5,))
        batch = {"inputs": rng.integers(0, 255, (3, 8, 8, 1)).astype(np.uint8), "label": label}
    sized = Sized(experiment.on_one_device(config), features)
    values = {}
    for path, shape in sized.shapes.items():
        drawn = rng.uniform(0.05, 0.4, shape)
        values[path] = (drawn if path.endswith("/var") else drawn * rng.choice([-1, 1], shape)).astype(np.float32)
    return sized, values, batch


def logits(sized: Sized, values: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> np.ndarray:
    weights, task = sized.weights(values), sized.programs.task
    given = {name: jnp.asarray(batch[name]) for name in task.exported_inputs(3)}
    run = jax.jit(lambda w, b: task.exported(sized.programs.merge(w.params, w.variables), b))
    return np.asarray(next(iter(run(weights, given).values())))


@pytest.mark.parametrize("name", CASES)
def test_parts_that_nothing_reads_are_found_and_go_without_a_trace(name):
    sized, values, batch = network(name)
    rng, model = np.random.default_rng(1), sized.config.model
    units = []
    for kind in SHARES:
        try:
            units += parts.of_model(model, values, kind, "run")
        except RunError as error:
            assert "can go" in str(error)
    idle = {each.place: sorted(rng.choice(each.count, each.count // 2, replace=False).tolist()) for each in units}
    for each in units:
        gates = np.ones(each.count, np.float32)
        gates[idle[each.place]] = 0
        values = {path: np.asarray(array) for path, array in each.gated(values, gates).items()}
    scores = structured.importance(sized, values, units, [batch])
    smaller, left = values, {}
    for each, score in zip(units, scores, strict=True):
        assert not score[idle[each.place]].any() and score.any(), each.place
        kept = np.setdiff1d(np.arange(each.count), idle[each.place])
        smaller, left[each.place] = each.keep(smaller, kept), len(kept)
    made = Sized(dataclasses.replace(sized.config, model=parts.resized(model, units, left)), sized.features)
    assert {path: array.shape for path, array in smaller.items()} == made.shapes
    assert sum(array.size for array in smaller.values()) < sum(array.size for array in values.values())
    before, after = logits(sized, values, batch), logits(made, smaller, batch)
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("structured")
    return Path(shutil.copytree(small.trained(tmp_path_factory) / "runs" / "small", folder / "small"))


def said_loss(run: Path) -> float:
    return bigctl.load(str(run)).evaluate("validation")["val/loss"]


def test_the_smaller_network_is_a_run_that_can_be_trained_on(run, tmp_path_factory, capsys):
    made = run.with_name("small-structured")
    assert main(["compress", str(run), "method=structured", "columns=0.5", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == str(made) and said["derived_from"] == "small" and said["model"] == {"hidden": [[8], [4]]}
    told = said["sensitivity"]
    assert told["layers"]["layers/0"] == pytest.approx(said_loss(made), rel=1e-5) != told["loss"]
    assert [*said["removed"]] == ["layers/0"] and said["bytes_after"] < said["bytes_before"]
    trained, source = bigctl.load(str(made)), bigctl.load(str(run))
    kept = np.setdiff1d(np.arange(8), said["removed"]["layers/0"])
    before, after = (flatten(each.params) for each in (source, trained))
    np.testing.assert_array_equal(after["layers/0/kernel"], np.asarray(before["layers/0/kernel"])[:, kept])
    np.testing.assert_array_equal(after["head/kernel"], np.asarray(before["head/kernel"])[kept])
    assert json.loads((made / "run.json").read_text())["parameters"] == sum(each.size for each in after.values())
    scores = trained.evaluate("validation")
    assert said["after_score"] == pytest.approx(scores["val/accuracy"])
    for command in (["verify", str(made)], ["eval", str(made)], ["info", str(made)], ["resume", str(made)]):
        assert main(command) == 0, command
    assert "made from small, step 30: method=structured by=taylor columns=0.5" in " ".join(
        capsys.readouterr().out.split()
    )
    rows = small.trained(tmp_path_factory) / "rows.csv"
    further = [*small.KEYS, "data=csv", f"data.path={rows}", "train.steps=2", f"model.init_from={made}"]
    with pytest.raises(ConfigError, match=r"set model.hidden=\[4\]"):
        bigctl.train(further, run.with_name("further"), quiet=True)
    bigctl.train([*further, "model.hidden=[4]"], run.with_name("further"), quiet=True)
    assert main(["compress", str(made), "method=int8"]) == 2
    assert "is compressed already (structured)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_layer_goes_that_is_needed_least_and_the_rest_leaves_as_onnx_but_not_for_transformers(tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    keys = ["recipe=vit_cls", "model.layers=2", "model.width=16", "model.heads=4", "model.intermediate=32"]
    bigctl.train([*keys, "train.steps=1", "train.tensorboard=false"], tmp_path / "run", quiet=True)
    asked = ["method=structured", "layers=1", "heads=0.5", "calibration=16", "--json"]
    assert main(["compress", str(tmp_path / "run"), *asked]) == 0
    said, made = json.loads(capsys.readouterr().out), str(tmp_path / "run-structured")
    assert said["model"] == {"layers": [2, 1], "heads": [4, 2], "head_dim": [None, 4]}
    assert said["removed"]["layers"] == [int(np.argmin(said["loss_without_layer"]))]
    kept = ["method=structured", "keep=[1]", "--run-dir", str(tmp_path / "kept")]
    assert main(["compress", str(tmp_path / "run"), *kept]) == 0
    assert "keep=[1]: model.layers 2 -> 1" in capsys.readouterr().out
    assert main(["export", made, "--format", "onnx", "--out", str(tmp_path / "onnx")]) == 0
    assert main(["export", made, "--format", "hf", "--out", str(tmp_path / "hf")]) == 2
    assert "2 heads of 4 features do not make up 16" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["heads=1.0"], "heads: 1 of them cannot go"),
        (["columns=-0.5"], "columns: -0.5 of them cannot go"),
        ([], "nothing is said to go"),
        (["layers=-1"], "layers: -1 layers cannot go"),
        (["layers=1", "keep=[0]"], "keep: says by itself how many layers go"),
        (["keep=[]"], "keep: '\\[\\]' names no layers"),
        (["keep=[0,first]"], "keep: '\\[0,first\\]' names no layers"),
        (["keep=[1,1]"], "keep: \\[1,1\\] names a layer twice"),
        (["heads=0.5", "sparsity=0.5"], "sparsity: is no key of method=structured"),
        (["keep=[1]", "by=taylor"], "by: tells which heads, columns, channels go, and none are said to .*keep= names"),
        (["layers=1", "by=magnitude"], "by: tells which .*layers go by the loss without them"),
        (["heads=0.5", "by=wanda"], "there is no by 'wanda' .one of: magnitude, taylor"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said):
        Method.parse(["method=structured", *settings])


def test_layers_that_are_named_stay_as_they_are():
    sized, values, batch = network("llama")
    kept, left, gone = structured._with_layers(sized, values, (1,), "run")
    assert gone == [0] and getattr(kept.config.model, "layers", None) == 1
    for name, array in left.items():
        assert np.array_equal(array, values[name.replace("layers/0/", "layers/1/")]), name
    assert logits(kept, left, batch).shape == logits(sized, values, batch).shape
    for wrong, said in (((0, 2), "there is no layer 2"), ((-1,), "no layer -1"), ((0, 1), "names all of the 2 layers")):
        with pytest.raises(RunError, match=said):
            structured._with_layers(sized, values, wrong, "run")


def test_by_is_recorded_where_something_goes_by_it():
    def told(settings: str) -> str:
        return str(Method.parse(["method=structured", *settings.split()]))

    assert told("keep=[0,5]") == "method=structured keep=[0,5]" and told("layers=2") == "method=structured layers=2"
    assert told("heads=0.5 layers=2") == "method=structured by=taylor heads=0.5 layers=2"
    assert "by" not in Method.parse(["method=structured", "keep=[0]"]).settings
    tried = Method.several(["method=prune,structured", "by=magnitude", "layers=1"])
    assert [*map(str, tried)] == ["method=prune sparsity=0.5 by=magnitude", "method=structured layers=1"]


def test_lists_of_layers_are_values_of_their_own():
    tried = Method.several(["method=structured", "keep=[0,2],[1]", "columns=0.5"])
    assert [each.keep for each in tried] == [(0, 2), (1,)]
    assert str(tried[0]) == "method=structured by=taylor columns=0.5 keep=[0,2]"


def test_what_a_model_has_not_cannot_go(run):
    trained = bigctl.load(str(run))
    for settings, said in {
        "heads=0.5": "model=mlp has no heads that can go",
        "layers=1": "model=mlp has no layers that can go",
        "keep=[0]": "model=mlp has no layers that can go",
        "columns=0.01": "columns=0.01 of 8 columns a layer is none",
    }.items():
        with pytest.raises(RunError, match=said):
            structured.shrunk(trained, Method.parse(["method=structured", settings]), trained.data())


def test_several_ways_are_held_beside_each_other_and_nothing_is_written(run, capsys):
    folders = sorted(run.parent.iterdir())
    asked = ["--pareto", "method=int8,prune,structured", "columns=0.25,0.5", "by=magnitude"]
    assert main(["compress", str(run), *asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = {each["method"]: each for each in said["tried"]}
    parts = [f"method=structured by=magnitude columns={share}" for share in (0.25, 0.5)]
    assert [*rows] == ["float32", "method=int8", "method=prune sparsity=0.5 by=magnitude", *parts]
    assert rows[parts[1]]["bytes"] < rows[parts[0]]["bytes"] < rows["float32"]["bytes"]
    trained = bigctl.load(str(run))
    assert rows["float32"]["score"] == pytest.approx(trained.evaluate("validation")["val/accuracy"])
    assert rows["method=int8"]["time"] == 1 and any(each["best"] for each in said["tried"])
    assert main(["compress", str(run), "--pareto", "method=structured", "heads=0.5", "--name", "x"]) == 2
    assert "--pareto writes no run" in capsys.readouterr().err
    assert main(["compress", str(run), "--pareto", "method=structured", "heads=0.5"]) == 2
    assert "none of the methods is for this model" in capsys.readouterr().err
    assert folders == sorted(run.parent.iterdir())
    for settings, wrong in {
        "method=soup": "there is no method 'soup' to be tried",
        "group=32": "no method is given",
    }.items():
        with pytest.raises(ConfigError, match=wrong):
            Method.several([settings])
    with pytest.raises(ConfigError, match="heads: is no key of int8"):
        Method.several(["method=int8", "heads=0.5"])


def test_the_pareto_set_is_what_nothing_else_is_better_than():
    points = {"whole": (0.9, 100, 1.0), "half": (0.9, 50, 1.0), "poor": (0.7, 60, 1.0), "fast": (0.6, 60, 0.5)}
    tried = [pareto.Tried(name, score, bytes=size, time=time) for name, (score, size, time) in points.items()]
    tried.append(pareto.Tried("none", refused="no heads"))
    assert [each.method for each in pareto.marked(tried, larger=True) if each.best] == ["half", "fast"]
    assert [each.method for each in pareto.marked(tried, larger=False) if each.best] == ["half", "fast"]
