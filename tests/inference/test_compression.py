"""Promises of `bigctl compress`: the result is a run, every number is measured anew, nothing is left out unsaid."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.export import rounded_otherwise
from bigctl.cli.main import main
from bigctl.errors import ConfigError, RunError
from bigctl.inference.compression import calibration, compressed, sensitivity
from bigctl.inference.compression.method import Method
from bigctl.inference.compression.weights import smaller
from bigctl.inference.exporters import formats
from bigctl.inference.exporters.network import Network
from bigctl.reports import compression
from bigctl.runs.removal import strangers
from bigctl.training.checkpoints.arrays import flatten
from tests import small

pytestmark = pytest.mark.usefixtures("briefly")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compress")
    return Path(shutil.copytree(small.trained(tmp_path_factory) / "runs" / "small", folder / "small"))


def test_the_result_is_a_run_that_says_what_it_was_made_of(run, capsys):
    assert main(["compress", str(run), "method=int8", "--json"]) == 0
    said, made = json.loads(capsys.readouterr().out), run.with_name("small-int8")
    assert said["run"] == str(made) and said["derived_from"] == "small" and said["layers"] == 2 and not said["left"]
    assert len(said["checkpoint"]["manifest-0.json"]) == 64 and said["bytes_after"] < said["bytes_before"]
    trained, source = bigctl.load(str(made)), bigctl.load(str(run))
    for name, values in flatten(source.params).items():
        new, step = np.asarray(flatten(trained.params)[name]), np.abs(values).max(0) / 127
        assert np.abs(new - values).max() <= step.max() / 2 + 1e-7
        if name.endswith("kernel"):  # a scale a column, and 255 values at most
            assert not np.array_equal(new, values) and np.allclose(new / step, np.rint(new / step), atol=1e-3)
    summary = json.loads((made / "summary.json").read_text())
    assert summary["compression"]["method"] == "int8" and summary["status"] == "complete"
    assert "timings" not in summary, "the training was another run's"
    assert summary["metrics"]["test/accuracy"] == pytest.approx(trained.evaluate("test")["test/accuracy"])
    assert summary["compression"]["after_score"] == pytest.approx(summary["metrics"]["val/accuracy"])
    layers = said["sensitivity"]
    assert [*layers["layers"]] == ["layers/0", "head"] and layers["rows"] == source.data().size("validation")
    assert layers["loss"] == pytest.approx(source.evaluate("validation")["val/loss"], rel=1e-5)
    assert all(loss != layers["loss"] for loss in layers["layers"].values())
    assert main(["report", str(made)]) == 0
    assert "Sensitivity of each layer" in next(made.glob("*.html")).read_text()
    for command in (["verify", str(made)], ["eval", str(made)], ["info", str(made)], ["compare", str(run), str(made)]):
        assert main(command) == 0, command
    assert (
        " ".join(capsys.readouterr().out.split()).count("made from small, step 30: method=int8") == 2
    )  # info, compare
    assert not [*strangers(made)] and summary["run"] == str(made)
    assert rounded_otherwise(trained, 8) == "int8" and rounded_otherwise(source, 8) is None
    assert main(["compress", str(made), "method=int4"]) == 2
    assert "is compressed already (int8)" in capsys.readouterr().err
    assert main(["compress", str(run), "method=int8"]) == 2
    assert "small-int8: exists already" in capsys.readouterr().err
    assert main(["compress", str(run), "method=int8", "--run-dir", str(made)]) == 2
    assert "exists already" in (said := capsys.readouterr().err) and "--resume" not in said
    before = {file: file.read_bytes() for file in made.rglob("*") if file.is_file() and file.name != ".lock"}
    for changed in (["train.steps=100"], ["optimizer.lr=0.1"]):
        assert main(["resume", str(made), *changed]) == 2
        said = capsys.readouterr().err
        assert "was made by `bigctl compress`" in said and f"model.init_from={made}" in said
    assert main(["resume", str(made)]) == 0  # nothing to do
    assert before == {file: file.read_bytes() for file in before}


def test_pruning_by_wanda_leaves_the_head_whole_and_says_so(run, capsys):
    folder = run.with_name("pruned")
    assert main(["compress", str(run), "method=prune", "sparsity=0.5", "--run-dir", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "33.3% zeros" in said and "left as they were: head/kernel" in said
    kernels = flatten(bigctl.load(str(folder)).params)
    shares = [(np.asarray(kernels[name]) == 0).mean() for name in kernels if name.endswith("kernel")]
    assert sorted(shares) == [0.0, pytest.approx(1 / 3)]  # one of three inputs: at most half


def test_a_soup_is_the_mean_of_checkpoints_and_a_greedy_one_is_no_worse(run, tmp_path_factory, capsys):
    rows = small.trained(tmp_path_factory) / "rows.csv"
    more = ["data=csv", f"data.path={rows}", "seed=3", "checkpoint.every=15", f"model.init_from={run}"]
    other = run.with_name("other")
    bigctl.train([*small.KEYS, *more], other, quiet=True)
    loaded = [bigctl.load(str(each)) for each in (run, other)]
    both = sorted(f"{name}:{each.step}" for name, each in zip(("small", "other"), loaded, strict=True))
    parts = [flatten(each.params) for each in loaded]
    for how in ("uniform", "greedy"):
        made = run.with_name(f"soup-{how}")
        asked = ["method=soup", f"soup={how}", f"from=[{other}]", "--run-dir", str(made), "--json"]
        assert main(["compress", str(run), *asked]) == 0
        said = json.loads(capsys.readouterr().out)
        assert sorted([*said["ingredients"], *said["left_out"]]) == both
        if how == "uniform":
            for name, values in flatten(bigctl.load(str(made)).params).items():
                np.testing.assert_allclose(values, (parts[0][name] + parts[1][name]) / 2, rtol=1e-6)
    scores = [each.evaluate("validation")["val/accuracy"] for each in (*loaded, bigctl.load(str(made)))]
    assert scores[2] >= max(scores[:2])
    card = Path(formats.exporter("jax").write(bigctl.load(str(made)), made / "jax").usage[0].split()[1]).parent
    assert f"bigctl compress small method=soup soup=greedy from=[{other.name}] --name soup-greedy" in (
        (card / "README.md").read_text()
    )
    shape = [*small.KEYS, "data=csv", f"data.path={rows}", "model.activation=tanh", "train.steps=1"]
    bigctl.train(shape, run.with_name("tanh"), quiet=True)
    refused = {f"from=[{run.with_name('none')}]": "no such run", "from=[]": "names no run"}
    refused |= {f"from=[{run.with_name('tanh')}]": "has model.activation=tanh", f"from=[{run}]": "is in it already"}
    refused |= {f"from=[{other},{other}]": "is in it already"}
    for wrong, text in {name: " ".join(said.split()) for name, said in refused.items()}.items():
        assert main(["compress", str(run), "method=soup", wrong, "--name", "x"]) == 2
        assert text in " ".join(capsys.readouterr().err.split())


def test_training_goes_on_between_the_zeros_of_a_pruned_run(run, tmp_path_factory, capsys):
    folder = run.with_name("half")
    assert main(["compress", str(run), "method=prune", "by=magnitude", "--run-dir", str(folder)]) == 0
    rows = small.trained(tmp_path_factory) / "rows.csv"
    begun = [*small.KEYS, "data=csv", f"data.path={rows}", f"model.init_from={folder}"]
    before, zeros = flatten(bigctl.load(str(folder)).params), {}
    for kept in ("true", "false"):
        more = ["train.steps=8", "train.ema=0.9", "optimizer.weight_decay=0.1", f"train.keep_zeros={kept}"]
        bigctl.train([*begun, *more], run.with_name(f"kept-{kept}"), quiet=True)
        after = flatten(bigctl.load(str(run.with_name(f"kept-{kept}"))).params)
        zeros[kept] = {
            name: ((np.asarray(after[name]) == 0) & (np.asarray(before[name]) == 0)).sum() for name in before
        }
        changed = [not np.array_equal(after[name], before[name]) for name in before]
        assert all(changed)
    (pruned,) = [name for name in before if name.endswith("kernel") and not name.startswith("head")]
    assert zeros["true"][pruned] == (np.asarray(before[pruned]) == 0).sum() > zeros["false"][pruned]
    assert main(["train", *small.KEYS, "data=csv", "data.path=x.csv", "train.keep_zeros=true"]) == 2
    assert "model.init_from names none" in capsys.readouterr().err


def test_what_a_layer_is_given_is_what_the_model_computes(run):
    trained = bigctl.load(str(run))
    network = Network.of(trained)
    assert network.dataset is not None
    found = calibration.norms(network, calibration.batches(network.dataset, 10**6))
    inputs = network.dataset.splits["train"]["inputs"]
    first, last = sorted((name for name in network.weights if name.endswith("kernel")), key=lambda name: "head" in name)
    np.testing.assert_allclose(found[first], np.sqrt(np.square(inputs, dtype=np.float64).sum(0)), rtol=1e-5)
    hidden = np.maximum(inputs @ network.weights[first] + network.weights[first.replace("kernel", "bias")], 0)
    np.testing.assert_allclose(found[last], np.sqrt(np.square(hidden, dtype=np.float64).sum(0)), rtol=1e-4)


KERNEL = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
HELD = {"layers/0/kernel": KERNEL, "head/kernel": KERNEL, "layers/0/bias": np.ones(6, np.float32)}


def test_wanda_compares_the_weights_of_each_output_by_what_they_are_given():
    norms = np.linspace(0.1, 5, 16)
    found = smaller(HELD, Method.parse(["method=prune", "sparsity=0.25"]), {"layers/0/kernel": norms}, "run")
    kernel, scores = found.values["layers/0/kernel"], np.abs(KERNEL) * norms[:, None]
    assert ((kernel == 0).sum(0) == 4).all() and found.left == {"head/kernel": 384}
    for column in range(6):
        dropped = kernel[:, column] == 0
        assert scores[dropped, column].max() < scores[~dropped, column].min()
    assert np.array_equal(kernel[kernel != 0], KERNEL[kernel != 0])
    assert found.after == 4 * 72 + 12 and found.before == 4 * 96


def test_magnitude_compares_all_of_a_layer_and_two_of_four_their_neighbours():
    found = smaller(HELD, Method.parse(["method=prune", "by=magnitude"]), {}, "run").values["layers/0/kernel"]
    assert np.abs(KERNEL[found == 0]).max() < np.abs(KERNEL[found != 0]).min() and (found == 0).mean() == 0.5
    found = smaller(HELD, Method.parse(["method=prune", "by=magnitude", "pattern=2:4"]), {}, "run").values[
        "layers/0/kernel"
    ]
    assert ((found == 0).reshape(4, 4, 6).sum(1) == 2).all()


def test_convolutions_stacked_layers_and_tables_are_rounded_along_their_inputs():
    rng = np.random.default_rng(1)
    shapes = {"conv/kernel": (3, 3, 4, 5), "layers/up/kernel": (2, 32, 3), "token/embedding": (7, 32)}
    held = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    found = smaller(held, Method.parse(["method=int8"]), {}, "run")
    assert found.layers == 3 and not found.left
    axes = {"conv/kernel": (0, 1, 2), "layers/up/kernel": (1,), "token/embedding": (1,)}
    for name, values in held.items():
        step = np.abs(values).max(axes[name], keepdims=True) / 127
        assert (np.abs(found.values[name] - values) <= step / 2 + 1e-6).all(), name
    fours = smaller(held, Method.parse(["method=int4"]), {}, "run").values
    assert all(
        np.abs(fours[name] - held[name]).max() < 0.4 and not np.array_equal(fours[name], held[name]) for name in held
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["method=prune", "sparsity=1.0"], "sparsity: 1 leaves nothing, or all"),
        (["method=prune", "sparsity=half"], "sparsity: 'half' is not a number"),
        (["method=int8", "sparsity=0.5"], "sparsity: is no key of method=int8"),
        (["method=prune", "pattern=2:4", "sparsity=0.7"], "pattern=2:4 is a sparsity of 0.5"),
        (["methd=int8"], "there is no key 'methd' .did you mean method="),
        (["method=int3"], "there is no method 'int3' .one of: int8, int4, prune"),
        (["method=int4", "group=7"], "there are no groups of 7"),
        (["method=int8", "method=int4"], "method: is given twice"),
        (["sparsity=0.5"], "no method is given"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_one_line(settings, said):
    with pytest.raises(ConfigError, match=said):
        Method.parse(settings)


def test_a_model_without_layers_for_a_method_and_a_failure_leave_nothing_behind(run, monkeypatch):
    with pytest.raises(RunError, match="this model has none that it can take"):
        smaller({"conv/kernel": np.ones((3, 3, 4, 5), np.float32)}, Method.parse(["method=prune"]), {}, "run")
    monkeypatch.setattr(compressed, "_save", lambda *arguments: (_ for _ in ()).throw(RunError("the disk is full")))
    with pytest.raises(RunError, match="the disk is full"):
        compressed.compress(bigctl.load(str(run)), Method.parse(["method=int4"]), run.with_name("broken"))
    assert not run.with_name("broken").exists()
    assert not [*run.parent.glob(".broken*")]


def test_a_name_that_is_taken_meanwhile_keeps_what_it_has(run, monkeypatch):
    taken, save = run.with_name("taken"), compressed._save

    def meanwhile(*arguments) -> None:
        save(*arguments)
        taken.mkdir()
        (taken / "run.json").write_text("of another process")

    monkeypatch.setattr(compressed, "_save", meanwhile)
    with pytest.raises(RunError, match="taken: has been made by another command meanwhile"):
        compressed.compress(bigctl.load(str(run)), Method.parse(["method=int8"]), taken)
    assert [(file.name, file.read_text()) for file in taken.iterdir()] == [("run.json", "of another process")]
    assert not [*run.parent.glob(".taken*")]


def test_a_kept_threshold_is_not_taken_along_and_the_score_is_that_of_the_new_run(run, capsys):
    source, made = shutil.copytree(run, run.with_name("decided")), run.with_name("undecided")
    plain = bigctl.load(str(source)).evaluate("validation")["val/accuracy"]
    kept = bigctl.load(str(source)).choose_threshold("recall>=1").evaluate("validation")
    assert "val/threshold" in kept
    assert main(["compress", str(source), "method=int8", "--run-dir", str(made)]) == 0
    summary = json.loads((made / "summary.json").read_text())
    assert not {"val/threshold", "test/threshold"} & summary["metrics"].keys()
    trained = bigctl.load(str(made))
    assert summary["metrics"]["val/accuracy"] == pytest.approx(trained.evaluate("validation")["val/accuracy"])
    assert summary["compression"]["before_score"] == pytest.approx(plain)


def test_every_array_is_rounded_or_named_with_its_bytes():
    rng = np.random.default_rng(2)
    shapes = {
        "head/ngrams": (512, 2), "groups/0/first": (3, 3, 4, 5), "layer/lora_a": (32, 8), "vit/position": (9, 32),
        "vit/cls": (1, 32), "vit/registers": (4, 32), "odd/mixture": (3, 7), "head/bias": (2,),
    }  # fmt: skip
    held = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    held["counts"] = np.ones((2, 2), np.int32)
    found = smaller(held, Method.parse(["method=int8"]), {}, "run")
    left = {"vit/cls": 128, "vit/registers": 512, "odd/mixture": 84}
    assert found.left == left and found.layers == 4
    axes = {"head/ngrams": (0,), "groups/0/first": (0, 1, 2), "layer/lora_a": (0,), "vit/position": (1,)}
    for name, each in held.items():
        step = np.abs(each).max(axes.get(name, 0), keepdims=True) / 127
        near = np.abs(found.values[name] - each) <= step / 2 + 1e-6
        assert near.all() and np.array_equal(found.values[name], each) != (name in axes), name
    assert found.after == (1024 + 8) + (180 + 20) + (256 + 32) + (288 + 36)
    pruned = smaller(held, Method.parse(["method=prune", "by=magnitude"]), {}, "run")
    whole = {"head/ngrams": 4096, "layer/lora_a": 1024, "vit/position": 1152, **left}
    assert pruned.left == whole and (pruned.values["groups/0/first"] == 0).mean() == 0.5


def test_what_would_become_no_smaller_stays_as_it_is():
    rng = np.random.default_rng(3)
    held = {"table/embedding": rng.normal(size=(50, 4)).astype(np.float32), "layer/kernel": KERNEL}
    found = smaller(held, Method.parse(["method=int4"]), {}, "run")
    assert found.left == {"table/embedding": 800} and found.layers == 1
    assert np.array_equal(found.values["table/embedding"], held["table/embedding"])


def test_windows_of_a_text_are_called_so():
    found = sensitivity.Sensitivity(32, 1.0, {"layers/0": 1.5}, "windows")
    assert found.lines[0].startswith("loss 1.0000 on 32 validation windows;")
    assert "32 validation windows" in compression.figures({"sensitivity": found.to_json()})[0].caption
