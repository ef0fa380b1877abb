"""Texts that are cut over a context axis train as on one device: on 8 simulated devices, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bigctl.config import compose
from bigctl.errors import ConfigError
from tests.training import test_tensor as meshed
from tests.training.test_sharding import on_eight_devices

SIZES = [*meshed.SIZES, "model.kv_heads=4", "optimizer=adamw"]
DOCUMENTS = ["recipe.packing=documents", "recipe.end_token=10"]
MODELS = {
    "packed": ["model=llama", *SIZES, *DOCUMENTS, "train.accumulate=2", "model.remat=full"],
    "learned": ["model=gpt", *SIZES, "model.scan=true", "model.remat=dots", "model.layers=2"],
    "experts": ["model=llama", *SIZES, "model.experts=4", "model.load_balance_loss=0.1"],
    "capacity": ["model=llama", *SIZES, "model.experts=4", "model.capacity_factor=0.9", "mesh.context_by=gather"],
}
MESHES = {
    "single": ["mesh=single"],
    "dcn_context": ["mesh=context", "mesh.dcn=2", "mesh.fsdp=2"],
    "fsdp_context_tensor": ["mesh=context", "mesh.fsdp=2", "mesh.tensor=2"],
    "expert_context": ["mesh=context", "mesh.expert=2", "mesh.data=2"],
}


def trained(folder: Path, runs: list[str], resumed: dict[str, str] | None = None) -> dict[str, Any]:
    return meshed.trained(folder, runs, resumed or {}, models=MODELS, meshes=MESHES)


@pytest.mark.fewer
def test_texts_that_are_cut_give_the_losses_of_one_device(tmp_path: Path) -> None:
    """Packed documents, dropout, accumulation, remat; losses after the third go on with one device's checkpoint;
    gradients; the validation loss."""
    mesh = "packed/fsdp_context_tensor"
    meshed.same(trained(tmp_path, ["packed/single", mesh], {mesh: "single"}), "packed")


@pytest.mark.slow
def test_every_mesh_with_a_context_axis_gives_the_losses_of_one_device(tmp_path: Path) -> None:
    meshes = {"learned": "dcn_context", "experts": "expert_context", "capacity": "fsdp_context_tensor"}
    found = trained(tmp_path, [f"{model}/{mesh}" for model in meshes for mesh in ("single", meshes[model])])
    for model in meshes:
        meshed.same(found, model)


_LONG = """
import json, pathlib, sys
import bigctl
from bigctl.engine import experiment, plan
from bigctl.planning import collectives, hlo
folder, contexts = json.loads(sys.argv[1])
text = pathlib.Path(folder) / "text.txt"
text.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\\n" for i in range(4000)))
keys = ["recipe=gpt_lm", "model=llama", "model.layers=2", "model.width=32", "model.heads=2", "model.kv_heads=1",
        "model.intermediate=64", "model.context=32768", "model.dropout=0.1", "recipe.tokenizer.type=bytes",
        "recipe.block=32768", "train.batch_size=1", "train.steps=5", "data=text", f"data.path={text}",
        "data.validation_fraction=0.4", "mesh=single"]
result = {}
for size in contexts:
    exp = experiment.build(bigctl.compose([*keys, f"mesh.context={size}"]))
    compiled = plan.compiled_step(exp)[1]
    sent = collectives.collectives(hlo.parse(compiled.as_text()), dict(exp.programs.mesh.shape))
    result[size] = {"temporary": compiled.memory_analysis().temp_size_in_bytes,
                    "sent": {each.kind: [list(each.axes), each.bytes] for each in sent if each.bytes > 2**20}}
print(json.dumps(result))
"""


@pytest.mark.slow
def test_the_memory_of_a_step_on_32768_tokens_falls_as_the_devices_that_share_them(tmp_path: Path) -> None:
    """Dropout included; the devices send each other what attention takes, around the ring, and little else."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    found = on_eight_devices(_LONG, json.dumps([str(tmp_path), [2, 8]]), flags=quick)
    two, eight = found["2"], found["8"]
    assert eight["temporary"] < two["temporary"] / 3.8
    (kind, (axes, sent)), *others = eight["sent"].items()
    assert kind == "collective-permute" and axes == ["context"] and not others
    own = 32768 // 8 * 16 * 4  # bytes of the keys that a device has; it has as many of values, and twice of queries
    forward = 4 + 7 * 2 + 2  # q, k and v are dealt, k and v go around, what was found comes back
    backward = 2 + 7 * (2 + 2) + 2 + 4  # so do the gradients, those of k and v as far as to where they belong
    assert sent == pytest.approx(2 * (forward + backward) * own, rel=0.02)


_WAYS = """
import collections, contextlib, json
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType
from bigctl.models import attention, context
from bigctl.parallel import axes, mesh as meshes
rng = np.random.default_rng(0)
q, k, v = (jnp.asarray(rng.normal(size=(2, 64, heads, 8)), jnp.float32) for heads in (4, 2, 2))
documents = jnp.asarray(np.sort(rng.integers(0, 5, (2, 64)), axis=1), jnp.int32)
looks, plain = collections.Counter(), context._look
def counted(*given):
    jax.debug.callback(lambda device: looks.update([int(device)]), jax.lax.axis_index("context"))
    return plain(*given)
context._look = counted

def attended(segments, mesh=None, way="gather"):
    def loss(q, k, v):
        with contextlib.nullcontext() if mesh is None else meshes.used(mesh, context_by=way):
            return jnp.sum(jnp.sin(3 * attention.causal_attention(q, k, v, segments)))
    given = (q, k, v) if mesh is None else jax.device_put((q, k, v), meshes.replicated(mesh))
    found = jax.device_get(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*given))
    jax.effects_barrier()
    return found

result, alone = {}, [attended(None), attended(documents)]
for way, sizes, number in (("gather", {"context": 4}, 0), ("ring", {"context": 4}, 1), ("zigzag", {"context": 4}, 0),
                           ("zigzag", {"context": 2, "data": 2, "tensor": 2}, 1)):
    shape = tuple({**dict.fromkeys(axes.NAMES, 1), **sizes}.values())
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, axes.NAMES, axis_types=(AxisType.Auto,) * len(shape), devices=devices)
    looks.clear()
    (total, grads), (expected, those) = attended([None, documents][number], mesh, way), alone[number]
    off = max(float(np.abs(a - b).max()) for a, b in zip(grads, those))
    result[f"{way} over {len(devices)}"] = {"total": [float(total), float(expected)], "gradients": off,
                                            "looks": [looks[i] for i in range(sizes["context"])]}
print(json.dumps(result))
"""


@pytest.mark.fewer
def test_each_way_gives_the_attention_of_one_device_and_zigzag_gives_all_devices_as_much_to_do() -> None:
    """With and without documents; blocks that a device looks at are counted while it computes."""
    found = on_eight_devices(_WAYS)
    for way, said in found.items():
        assert said["gradients"] < 2e-5, way
        assert said["total"][0] == pytest.approx(said["total"][1], rel=1e-5), way
    assert found["gather over 4"]["looks"] == found["ring over 4"]["looks"] == [1, 2, 3, 4]
    assert found["zigzag over 4"]["looks"] == [9] * 4  # halves of those


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["recipe=gpt_lm", "model=llama_tiny", "recipe.block=64", "mesh.context=5"], "for example mesh.context=4"),
        (["recipe=bert_mlm", "mesh.context=2"], "mesh.context is for models of one long text, model=bert has none"),
    ],
)
def test_what_cannot_be_cut_is_said_with_what_can(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose.compose(options)
    assert said in f"{error.value}"
