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
    "capacity": ["model=llama", *SIZES, "model.experts=4", "model.capacity_factor=0.9"],
}
MESHES = {
    "single": ["mesh=single"],
    "data_context": ["mesh=context", "mesh.data=2"],
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
    meshes = {"learned": "data_context", "experts": "expert_context", "capacity": "fsdp_context_tensor"}
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


@pytest.mark.fewer
def test_the_memory_of_a_step_on_32768_tokens_falls_as_the_devices_that_share_them(tmp_path: Path) -> None:
    """Dropout included; the devices send each other keys, values, and their gradients, and little else."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    found = on_eight_devices(_LONG, json.dumps([str(tmp_path), [2, 8]]), flags=quick)
    two, eight = found["2"], found["8"]
    assert eight["temporary"] < two["temporary"] / 3.5
    own = 2 * 32768 * 16 * 4 * 2 // 8  # bytes of keys and values of 16 features and 2 layers that a device has
    assert eight["sent"].keys() == {"all-gather", "reduce-scatter"}
    for axes, sent in eight["sent"].values():
        assert axes == ["context"] and sent == pytest.approx(7 * own, rel=0.05)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["recipe=gpt_lm", "model=llama_tiny", "recipe.block=64", "mesh.context=5"], "such as mesh.context=4"),
        (["recipe=bert_mlm", "mesh.context=2"], "mesh.context is for models of one long text, model=bert has none"),
    ],
)
def test_what_cannot_be_cut_is_said_with_what_can(options: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose.compose(options)
    assert said in f"{error.value}"
