"""Where each leaf of the state lives follows from its path and shape alone."""

from __future__ import annotations

import dataclasses

import jax
import pytest
from jax.sharding import PartitionSpec as P

import bigctl
from bigctl.config import schema
from bigctl.engine import experiment
from bigctl.parallel import axes, partition

MIN_SHARD = 2**14
FSDP = next(axis for axis in axes.AXES if axis.name == "fsdp")

EXAMPLES = [
    # path, shape, expected on 8 shards
    ("params/layers/0/kernel", (1024, 1024), P(None, "fsdp")),  # the last one on a tie
    ("params/layers/0/kernel", (2048, 64), P("fsdp")),  # the longest dimension
    ("params/layers/0/kernel", (64, 2048), P(None, "fsdp")),
    ("params/layers/0/kernel", (2049, 64), P(None, "fsdp")),  # the longest that 8 divides
    ("params/layers/0/kernel", (1001, 1003), P()),  # nothing 8 divides
    ("params/layers/0/kernel", (64, 64), P()),  # too small to be worth it
    ("params/layers/0/kernel", (128, 128), P(None, "fsdp")),  # just large enough: 2^14
    ("params/convs/1/kernel", (3, 3, 64, 128), P(None, None, None, "fsdp")),
    ("params/convs/1/kernel", (3, 3, 128, 64), P(None, None, "fsdp")),
    ("params/layers/0/bias", (65536,), P()),
    ("params/norms/0/norm/scale", (65536,), P()),
    ("variables/norms/0/norm/mean", (65536,), P()),
    ("variables/norms/0/norm/var", (65536,), P()),
    ("opt_state/0/count", (), P()),
    ("opt_state/0/mu/layers/0/bias", (65536,), P()),
    ("opt_state/0/mu/layers/0/kernel", (2048, 64), P("fsdp")),
    ("ema/layers/0/kernel", (2048, 64), P("fsdp")),
    ("sums/confusion", (1024, 1024), P()),
    ("params/scale_of_things/kernel", (2048, 64), P("fsdp")),  # only a whole last name counts
    ("params/subsums/kernel", (2048, 64), P("fsdp")),
    ("step", (), P()),
    ("bad_step", (), P()),
]


@pytest.mark.parametrize(("path", "shape", "expected"), EXAMPLES)
def test_spec_of_a_leaf(path: str, shape: tuple[int, ...], expected: P) -> None:
    assert partition.spec(path, shape, {"fsdp": 8}, MIN_SHARD) == expected


TENSOR_EXAMPLES = [
    # path, shape, expected on 2 shards over fsdp and 4 over tensor
    ("params/layers/0/attention/query/kernel", (256, 512), P("fsdp", "tensor")),
    ("params/layers/11/attention/value/kernel", (256, 128), P("fsdp", "tensor")),
    ("params/layers/0/attention/key/bias", (128,), P("tensor")),
    ("params/layers/0/attention/output/kernel", (512, 256), P("tensor", "fsdp")),
    ("params/layers/0/attention/output/bias", (256,), P()),
    ("params/layers/0/up/kernel", (256, 1024), P("fsdp", "tensor")),
    ("params/layers/0/gate/kernel", (256, 1024), P("fsdp", "tensor")),
    ("params/layers/0/up/bias", (1024,), P("tensor")),
    ("params/layers/0/down/kernel", (1024, 256), P("tensor", "fsdp")),
    ("params/layers/0/down/bias", (256,), P()),
    ("params/layers/0/mlp_norm/scale", (65536,), P()),
    ("params/token/embedding", (50304, 255), P("tensor")),  # no other dimension that 2 divides
    ("params/position/embedding", (1024, 256), P("fsdp")),
    ("params/head/kernel", (256, 50304), P("fsdp", "tensor")),
    ("params/head/kernel", (256, 50302), P(None, "fsdp")),  # nothing for 4: whole over tensor
    ("params/layers/0/up/kernel", (8, 16), P(None, "tensor")),  # the work is shared, however small
    ("opt_state/0/mu/layers/0/down/kernel", (1024, 256), P("tensor", "fsdp")),
    ("ema/encoder/layers/0/attention/output/kernel", (512, 256), P("tensor", "fsdp")),
    ("params/encoder/embeddings/token/embedding", (30522, 256), P("fsdp")),
    ("params/layers/0/kernel", (1024, 1024), P(None, "fsdp")),
    ("step", (), P()),
]


@pytest.mark.parametrize(("path", "shape", "expected"), TENSOR_EXAMPLES)
def test_spec_of_a_leaf_with_a_tensor_axis(path: str, shape: tuple[int, ...], expected: P) -> None:
    assert partition.spec(path, shape, {"fsdp": 2, "tensor": 4}, MIN_SHARD) == expected


@pytest.mark.parametrize(("path", "shape"), [(path, shape) for path, shape, _ in EXAMPLES])
def test_one_shard_cuts_nothing(path: str, shape: tuple[int, ...]) -> None:
    assert partition.spec(path, shape, dict.fromkeys(axes.NAMES, 1), 0) == P()


STACKED_EXAMPLES = [
    # path of a parameter of 12 layers at once, shape, expected: that of a single one behind the layers
    ("params/layers/attention/query/kernel", (12, 256, 512), P(None, "fsdp", "tensor")),
    ("params/layers/attention/output/kernel", (12, 512, 256), P(None, "tensor", "fsdp")),
    ("opt_state/0/mu/layers/down/kernel", (12, 1024, 256), P(None, "tensor", "fsdp")),
    ("params/layers/up/bias", (12, 1024), P(None, "tensor")),
    ("params/layers/mlp_norm/scale", (12, 65536), P()),
    ("params/layers/attention/key/kernel", (1024, 64, 64), P(None, None, "tensor")),  # one alone is small for fsdp
    ("params/token/embedding", (50304, 256), P("tensor", "fsdp")),  # not stacked
]


@pytest.mark.parametrize(("path", "shape", "expected"), STACKED_EXAMPLES)
def test_stacked_parameters_are_cut_as_single_ones_are(path: str, shape: tuple[int, ...], expected: P) -> None:
    sizes = {"fsdp": 2, "tensor": 4}
    assert partition.spec(path, shape, sizes, MIN_SHARD, stacked=[r"(^|/)layers/(?!\d)"]) == expected


EXPERT_EXAMPLES = [
    ("params/layers/0/experts/up/kernel", (8, 256, 512), P("expert", "fsdp", "tensor")),
    ("opt_state/0/mu/layers/0/experts/down/kernel", (8, 512, 256), P("expert", "tensor", "fsdp")),
    ("params/layers/0/experts/gate/bias", (8, 512), P("expert", "tensor")),
    ("params/layers/0/experts/down/bias", (8, 256), P("expert")),
    ("params/layers/0/experts/router/kernel", (2048, 8), P("fsdp")),
    ("params/layers/0/attention/query/kernel", (256, 512), P("fsdp", "tensor")),
]


@pytest.mark.parametrize(("path", "shape", "expected"), EXPERT_EXAMPLES)
def test_experts_are_shared_out_and_each_is_cut_as_others_are(path: str, shape: tuple[int, ...], expected: P) -> None:
    sizes = {"fsdp": 2, "tensor": 2, "expert": 4}
    assert partition.spec(path, shape, sizes, MIN_SHARD, stacked=schema.Decoder.stacked) == expected


def test_the_first_rule_that_matches_decides() -> None:
    rows = (r"special/kernel$", lambda shape, shards: 0)
    fsdp = dataclasses.replace(FSDP, rules=(rows, *FSDP.rules))
    assert partition.spec("params/special/kernel", (64, 2048), {"fsdp": 8}, MIN_SHARD, axes=[fsdp]) == P("fsdp")
    assert partition.spec("params/other/kernel", (64, 2048), {"fsdp": 8}, MIN_SHARD, axes=[fsdp]) == P(None, "fsdp")


def test_a_path_that_no_rule_places_is_named() -> None:
    fsdp = dataclasses.replace(FSDP, rules=((r"bias$", axes.whole),))
    with pytest.raises(ValueError, match="params/layers/0/kernel"):
        partition.spec("params/layers/0/kernel", (1024, 1024), {"fsdp": 8}, MIN_SHARD, axes=[fsdp])


def test_a_new_axis_is_one_entry_and_takes_its_own_dimension() -> None:
    """Stages: the first dimension of their matrices, further in than all other axes."""
    stages = axes.Axis("stage", rules=((r"stages/", axes.first_dimension), (r".*", axes.whole)))
    sizes = {"fsdp": 2, "stage": 4}
    found = partition.spec("params/stages/kernel", (8, 256, 512), sizes, MIN_SHARD, axes=[*axes.AXES, stages])
    assert found == P("stage", None, "fsdp")
    assert partition.spec("params/layers/0/kernel", (256, 512), sizes, MIN_SHARD, axes=[*axes.AXES, stages]) == P(
        None, "fsdp"
    )


def test_the_axes_are_those_of_the_configuration_in_its_order() -> None:
    assert tuple(schema.Mesh().axes) == axes.NAMES


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adamw", "lion", "muon"])
def test_optimizer_state_and_averages_live_beside_their_parameters(optimizer: str) -> None:
    overrides = ["recipe=cnn_cls", "data=digits", "model=mlp", "model.hidden=[1024,2048]", "train.ema=0.9"]
    config = bigctl.compose([*overrides, f"optimizer={optimizer}", "train.steps=1"])
    state = experiment.build(config).programs.abstract_state
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    specs = {partition.path_name(path): partition.spec(partition.path_name(path), leaf.shape, {"fsdp": 8}, MIN_SHARD)
             for path, leaf in leaves}  # fmt: skip
    shapes = {partition.path_name(path): leaf.shape for path, leaf in leaves}
    params = {name.removeprefix("params"): spec for name, spec in specs.items() if name.startswith("params/")}
    assert params["/layers/1/kernel"] == P(None, "fsdp")
    beside = 0
    for name, spec in specs.items():
        for parameter, where in params.items():
            same_shape = shapes[name] == shapes["params" + parameter]
            if name.endswith(parameter) and not name.startswith("params/") and same_shape:
                assert spec == where, name
                beside += 1
    assert beside >= 2 * len(params)  # the averages, and at least one moment each


def test_shardings_keep_the_structure_of_the_tree() -> None:
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "tensor"), devices=jax.devices()[:1])
    tree = {"a": [jax.ShapeDtypeStruct((4,), "float32")], "b": jax.ShapeDtypeStruct((2, 2), "int32")}
    placed = partition.shardings(mesh, tree, MIN_SHARD)
    assert jax.tree.structure(placed) == jax.tree.structure(tree)  # type: ignore[operator]
    assert all(leaf.mesh == mesh for leaf in jax.tree.leaves(placed))
