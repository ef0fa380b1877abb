"""A run that was saved on many devices goes on, on fewer and otherwise arranged, with the same batches and losses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.training.test_sharding import MESHES, RECIPES, on_eight_devices
from tests.training.test_text_training import write

pytestmark = pytest.mark.fewer
_GO_ON = """
import json, pathlib, sys
import jax, numpy as np
import bigctl
from bigctl.engine import experiment
from bigctl.training import feed as feeds
from bigctl.training.checkpoints.arrays import shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Progress
overrides, folder, meshes = json.loads(sys.argv[1])
result = {}
for name, mesh in meshes.items():
    config = bigctl.compose([*overrides, *mesh])
    exp = experiment.build(config)
    size, store = config.train.batch_size, Checkpoints(pathlib.Path(folder))
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], config)
    if name == "eight":
        state, progress = exp.programs.initialise(), Progress()
    else:
        saved = store.find("last")
        state, progress = store.restore(saved, exp.programs.abstract_state), saved.progress
    losses = []
    while progress.step < 12:
        if progress.step == 6 and name == "eight":
            store.save(state, progress, {"shapes": shapes(exp.programs.abstract_state)})
            store.wait()
        state, _ = feed.advance(state, progress.position, 1)
        progress.step, progress.position = progress.step + 1, progress.position + size
        losses.append(float(jax.device_get(state.sums["loss"])[0]))
    feed.close()
    store.close()
    result[name] = {"losses": losses[-6:], "devices": exp.programs.mesh.size}
print(json.dumps(result))
"""
FEWER = {
    "four": ["mesh.data=2", "mesh.fsdp=2", "mesh.min_shard=1"],
    "two": ["mesh.data=1", "mesh.fsdp=2", "mesh.min_shard=1"],
    "one": ["mesh=single"],
}


@pytest.mark.parametrize(
    "kind", ["resident", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sent", "texts", "tensor"))]
)
def test_a_run_saved_on_eight_devices_goes_on_with_the_same_losses_on_fewer(kind: str, tmp_path: Path) -> None:
    """Sums of losses from step 7 to 12, to 1e-5 of their value, on 4 and 1 devices, and 2, and other meshes."""
    overrides, meshes = [*RECIPES["mlp_cls"], "train.batch_size=64"], {"eight": MESHES["data"], **FEWER}
    if kind == "resident":
        del meshes["two"]
    if kind == "sent":
        overrides += ["data.resident_mib=0"]
        meshes["eight"] = MESHES["mixed"]
    if kind == "texts":
        overrides = [
            "recipe=lstm_cls", "recipe.tokenizer.size=64", "recipe.bucketing.shapes=2", "model.embedding=8",
            "model.hidden=8", "train.batch_size=16", *write(tmp_path),
        ]  # fmt: skip
    if kind == "tensor":
        (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog. " * 400)
        overrides = [
            "recipe=gpt_lm", "model.layers=1", "model.width=32", "model.heads=4", "model.context=32", "data=text",
            f"data.path={tmp_path}/words.txt", "train.batch_size=16",
        ]  # fmt: skip
        meshes["eight"] = ["mesh.data=4", "mesh.tensor=2"]
    overrides += ["train.steps=12"]
    found = on_eight_devices(_GO_ON, json.dumps([overrides, str(tmp_path / "checkpoints"), meshes]))
    assert [run["devices"] for run in found.values()] == ([8, 4, 1] if kind == "resident" else [8, 4, 2, 1])
    assert len(set(found["eight"]["losses"])) == 6
    for name, run in found.items():
        np.testing.assert_allclose(run["losses"], found["eight"]["losses"], rtol=1e-5, err_msg=name)
