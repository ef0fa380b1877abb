"""Slices that are far from each other send gradients, and nothing else: by the compiled text for simulated devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training.test_sharding import on_eight_devices

_SENT = """
import json, pathlib, sys
import bigctl
from bigctl.engine import experiment, plan
from bigctl.planning import collectives, hlo
text = pathlib.Path(sys.argv[1]) / "text.txt"
text.write_text("".join(f"{i} bottles of beer, {i * 7 % 10} of them cold.\\n" for i in range(400)))
config = bigctl.compose([
    "recipe=gpt_lm", "model=llama", "model.layers=2", "model.width=64", "model.heads=4", "model.kv_heads=2",
    "model.intermediate=128", "model.context=64", "recipe.tokenizer.type=bytes", "train.batch_size=16", "train.steps=5",
    "optimizer=muon_lm", "optimizer.iterations=1", "data=text", f"data.path={text}",
    "mesh=single", "mesh.dcn=2", "mesh.fsdp=2", "mesh.tensor=2", "mesh.min_shard=1"])
exp = experiment.build(config)
compiled = plan.compiled_step(exp)[1]
sent = collectives.collectives(hlo.parse(compiled.as_text()), dict(exp.programs.mesh.shape))
print(json.dumps({"parameters": exp.parameter_count, "sent": [[each.kind, each.axes, each.bytes] for each in sent]}))
"""


@pytest.mark.fewer
def test_only_gradients_are_sent_between_slices(tmp_path: Path) -> None:
    """With Muon, which shares matrices out within a slice."""
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    found = on_eight_devices(_SENT, json.dumps(str(tmp_path))[1:-1], flags=quick)
    far = [(kind, axes, sent) for kind, axes, sent in found["sent"] if "dcn" in axes]
    near = {kind for kind, axes, _ in found["sent"] if "dcn" not in axes}
    assert {"all-gather", "all-to-all"} <= near  # parameters, and Muon's matrices
    assert {kind for kind, _, _ in far} == {"all-reduce"}
    # Among two, an all-reduce sends as many bytes as it adds up: a quarter of the gradients, and small ones whole.
    total = sum(sent for _, _, sent in far)
    assert found["parameters"] < total < 2 * found["parameters"]
