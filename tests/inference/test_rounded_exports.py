"""Promises of `bigctl export --int8` and `--int4`: every product and table is rounded or it is said, and scored."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import RunError
from bigctl.interop import rounding
from tests import small

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
import onnxruntime

from bigctl.inference.exporters import beside, onnx_model
from bigctl.inference.exporters.network import Network
from bigctl.interop.onnx import quantise
from tests.inference.test_exporters import run_py

pytestmark = [pytest.mark.usefixtures("briefly"), pytest.mark.fewer]


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    """A run of an LSTM, whose layer is one operator with two matrices, on texts that it learns to tell apart."""
    folder = tmp_path_factory.mktemp("texts")
    with (folder / "texts.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows((f"{('fine', 'dull')[n % 2]} film {n}", ("good", "bad")[n % 2]) for n in range(120))
    keys = [
        "recipe=lstm_cls",
        "model=lstm",
        "data=csv",
        f"data.path={folder / 'texts.csv'}",
        "data.text=text",
        "data.label=label",
    ]
    keys += ["model.embedding=32", "model.hidden=16", "train.steps=30", "recipe.tokenizer.max_length=16"]
    keys += ["recipe.tokenizer.size=80", "train.batch_size=32", "recipe.bucketing.shapes=1", "optimizer.lr=0.02"]
    bigctl.train([*keys, "train.tensorboard=false"], folder / "run", quiet=True)
    return folder / "run"


@pytest.mark.parametrize("bits", [8, pytest.param(4, marks=pytest.mark.slow)])
def test_every_product_and_table_is_rounded_and_the_card_says_what_it_costs(texts, tmp_path, bits):
    trained = bigctl.load(str(texts))
    facts = onnx_model.write(trained, tmp_path / "out", bits=bits).facts["rounded"]
    model = onnx.load(tmp_path / "out" / "model.onnx")
    assert not [each for each in quantise.weights(model) if each.quantisable and "scales" not in each.name]
    assert facts["layers"] == {"Gather": 1, "MatMul": 1, "LSTM": 4}
    held = Network.of(trained).weights.values()
    assert facts["before"] == 4 * sum(np.size(values) for values in held if np.ndim(values) == 2)
    assert facts["after"] < facts["before"] / (2.5 if bits == 8 else 4)
    assert facts["before_score"] > 0.9 and abs(facts["after_score"] - facts["before_score"]) < 0.1
    assert facts["agreement"] > 0.9 and {each["batch"] for each in facts["times"]} == {1, 64}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "## Rounded weights" in card and f"int{bits}: " in card and "accuracy" in card and "batch 64" in card
    expected = [record["label"] for record in trained.describe(["fine film 3", "dull film 4"])]
    answers = run_py(tmp_path / "out", "fine film 3", "dull film 4").splitlines()
    assert [line.split("\t")[0] for line in answers] == expected


def test_an_artefact_names_its_run_and_the_digest_of_the_checkpoint(texts, tmp_path, capsys):
    assert main(["export", str(texts), "--format", "onnx", "--int8", "--out", str(tmp_path / "out"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["rounded"]["file_after"] == (tmp_path / "out" / "model.onnx").stat().st_size
    source = json.loads((tmp_path / "out" / "source.json").read_text())
    assert source["derived_from"] == "run" and f"{source['step']:09d}" in {
        p.name for p in (texts / "checkpoints").iterdir()
    }
    assert len(source["checkpoint"]["manifest-0.json"]) == 64


def test_a_format_that_cannot_round_and_two_roundings_at_once_are_refused(texts, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    assert main(["export", str(texts), "--format", "jax", "--int8", *out]) == 2
    assert "--int8: --format jax has no weights of 8 bits" in capsys.readouterr().err
    assert main(["export", str(texts), "--format", "onnx", "--int8", "--int4", *out]) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_table_of_numbers_is_compared_by_its_error(tmp_path):
    run = tmp_path / "run"
    rows = small.columns()
    small.write(tmp_path / "rows.csv", {"size": rows["size"], "place": rows["place"], "price": 3 * rows["size"] + 0.01})
    keys = [*small.KEYS, "data=csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=price", "model.head=regression"]
    bigctl.train([*keys, "model.hidden=[64,64]"], run, quiet=True)
    facts = onnx_model.write(bigctl.load(str(run)), tmp_path / "out", bits=8).facts["rounded"]
    assert facts["scored"] == "absolute error" and abs(facts["after_score"] - facts["before_score"]) < 0.1


def convolution(kernel: np.ndarray, dense: np.ndarray | None = None) -> onnx.ModelProto:
    nodes = [onnx.helper.make_node("Conv", ["x", "kernel"], ["y"])]
    held = [onnx.numpy_helper.from_array(kernel, "kernel")]
    if dense is not None:
        nodes.append(onnx.helper.make_node("MatMul", ["y", "dense"], ["z"]))
        held.append(onnx.numpy_helper.from_array(dense, "dense"))
    shapes = [
        onnx.helper.make_tensor_value_info(name, 1, [None, None, None, None]) for name in ("x", nodes[-1].output[0])
    ]
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", shapes[:1], shapes[1:], held))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_of_short_rows_shrinks_to_a_quarter(bits):
    """As that of n-grams, where a scale for each row of two classes left three quarters."""
    values = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32) * np.float32([1, 30])
    given = onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, [None])
    told = onnx.helper.make_tensor_value_info("found", 1, [None, 2])
    node, held = (
        onnx.helper.make_node("Gather", ["table", "rows"], ["found"]),
        onnx.numpy_helper.from_array(values, "table"),
    )
    graph = onnx.helper.make_graph([node], "g", [given], [told], [held])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    found, facts = quantise.quantised(model, bits, "run")
    assert facts.layers == {"Gather": 1} and (facts.before, facts.after) == (4000, 1000 + 8) and not facts.kept
    rows = np.arange(500)
    (answer,) = onnxruntime.InferenceSession(found.SerializeToString()).run(None, {"rows": rows})
    assert (np.abs(answer - values).max(0) <= np.abs(values).max(0) / 254 + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_a_layer_of_an_lstm_computes_with_the_integers_of_its_matrices(bits):
    """What they stand for is made by the runtime when it loads the file: the layer answers as with float32 of these."""
    rng = np.random.default_rng(0)
    held = {"w_1": rng.normal(size=(1, 4 * 16, 40)), "r_2": rng.normal(size=(1, 4 * 16, 16))}  # 40: no multiple of 32
    held = {name: values.astype(np.float32) for name, values in held.items()}
    bias = rng.normal(size=(1, 8 * 16)).astype(np.float32)

    def layer(given: dict[str, np.ndarray]) -> onnx.ModelProto:
        nodes = [onnx.helper.make_node("LSTM", ["x", *given, "b"], [name], hidden_size=16) for name in ("y", "again")]
        x = onnx.helper.make_tensor_value_info("x", 1, [None, None, 40])
        y = onnx.helper.make_tensor_value_info("y", 1, [None, 1, None, 16])
        tensors = [onnx.numpy_helper.from_array(values, name) for name, values in {**given, "b": bias}.items()]
        graph = onnx.helper.make_graph(nodes, "g", [x], [y], tensors)
        return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)

    model, facts = quantise.quantised(layer(held), bits, "run")
    stand_for = {}
    for name, (values,) in held.items():
        if bits == 8:
            integers, scale = rounding.to_int8(values, quantise.LEVELS)
            stand_for[name] = (integers * scale)[None]
        else:
            stand_for[name] = rounding.from_int4(*rounding.to_int4(values), values.shape[1])[None]
    assert facts.layers == {"LSTM": 4} and facts.before == 4 * 64 * 56 and not facts.kept
    assert facts.after <= facts.before * (0.29 if bits == 8 else 0.28)  # rows of 40 and 16 are filled up to 64 and 32
    given = {"x": rng.normal(size=(7, 3, 40)).astype(np.float32)}
    found, expected = (
        onnxruntime.InferenceSession(each.SerializeToString()).run(None, given)[0] for each in (model, layer(stand_for))
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    if bits == 8:
        for name, values in quantise.products(model).items():
            inverse = np.split(values.T, 4)
            again = np.concatenate([inverse[place] for place in (0, 3, 1, 2)])  # input, output, forget, cell
            np.testing.assert_array_equal(again[None], stand_for[{"w": "w_1", "r": "r_2"}[name]])


def test_rows_are_rounded_each_by_itself_once_for_all_products_and_as_training_rounds_them():
    """A row beside others a thousand times as large gives what it gives alone, to the bit; a row of zeros gives 0."""
    from bigctl.models import rounded

    rng = np.random.default_rng(0)
    held = {f"{name}/kernel_1": rng.normal(size=(24, 6)).astype(np.float32) for name in ("query", "key")}
    held["key/kernel_1"][:, 2] = 0
    given = onnx.helper.make_tensor_value_info("x", 1, [None, None, 24])
    told = [onnx.helper.make_tensor_value_info(name[:1], 1, [None, None, 6]) for name in held]
    nodes = [onnx.helper.make_node("MatMul", ["x", name], [name[:1]]) for name in held]
    kernels = [onnx.numpy_helper.from_array(values, name) for name, values in held.items()]
    graph = onnx.helper.make_graph(nodes, "g", [given], told, kernels)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    found, facts = quantise.quantised(model, 8, "run")
    assert facts.layers == {"MatMul": 2} and [n.op_type for n in found.graph.node].count("QuantizeLinear") == 1
    run = onnxruntime.InferenceSession(found.SerializeToString()).run
    x = rng.normal(size=(3, 5, 24)).astype(np.float32) * np.float32([[[1]], [[1000]], [[0.01]]])
    x[1, 2], x[2] = 0, np.abs(x[2])
    answers = run(None, {"x": x})
    for answer, (name, values) in zip(answers, held.items(), strict=True):
        kernel = rounded.rounded_matrix(values, 0, quantise.LEVELS)
        np.testing.assert_allclose(quantise.products(found)[name[:-2]], kernel, atol=1e-6)
        expected = np.asarray(rounded.rounded_inputs(x) @ kernel)
        np.testing.assert_allclose(answer, expected, atol=1e-5 * np.abs(expected).max())
        assert np.isfinite(answer).all() and not answer[1, 2].any()
    assert all(np.array_equal(one, both[:1]) for one, both in zip(run(None, {"x": x[:1]}), answers, strict=True))


def test_a_model_without_products_or_with_hardly_any_is_refused():
    kernel = np.ones((64, 8, 3, 3), np.float32)
    with pytest.raises(RunError, match="run: has no matrix products or tables to write as int8") as refused:
        quantise.quantised(convolution(kernel), 8, "run")
    assert "compress RUN method=int8 ranges=" in str(refused.value.hint)
    with pytest.raises(RunError, match=r"int4 would hardly make it smaller: 64 -> \d+ bytes, and Conv 18,432 bytes"):
        quantise.quantised(convolution(kernel, np.ones((4, 4), np.float32)), 4, "run")


def test_four_bits_are_those_of_llama_cpp_and_eight_are_the_nearest():
    gguf = pytest.importorskip("gguf")
    values = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    values[2, :32] = 0
    found, scale = rounding.to_int4(values)
    kind = gguf.GGMLQuantizationType.Q4_0
    theirs = gguf.dequantize(gguf.quantize(values, kind), kind)  # their scale is float16
    np.testing.assert_allclose(rounding.from_int4(found, scale, 96), theirs, atol=2e-3)
    assert rounding.from_int4(*rounding.to_int4(values[:, :40]), 40).shape == (6, 40)
    whole, steps = rounding.to_int8(values)
    assert (np.abs(whole * steps - values) <= steps / 2 + 1e-6).all() and np.abs(whole).max() == 127


def test_what_is_slower_here_is_said():
    quick, slow = beside.Times(1, 9, 2.0, 3.0, 1.0, 3.0), beside.Times(64, 9, 2.0, 3.0, 4.0, 5.0)
    found = beside.Beside("accuracy", "10 validation rows", 0.9, 0.8, 0.05, 0.9, (quick, slow))
    assert found.lines[-1] == "slower here at batch 64: keep float32 where time matters"
    assert "0.9000 -> 0.8000 (-0.1000 +- 0.0500) on 10 validation rows" in found.lines[1]
    alike = beside.Times(1, 9, 1.0, 1.15, 1.04, 2.87)  # as of one file, timed twice
    assert not any("slower" in line for line in beside.Beside("", "rows", 0, 0, 0, 1, (quick, alike)).lines)
    assert beside.Times(1, 9, 1.0, 1.15, 1.06, 2.87).slower
