"""Promises of `recipe.packing=documents`: a packed document is learned as if it were alone, on any number of devices,
and whatever is done with a run can be done with such a one."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bigctl.recipes import lm_loss
from flax import nnx

import bigctl as package
from bigctl.cli.main import main
from bigctl.config import compose, schema
from bigctl.data.layouts.packed import Packed, pack
from bigctl.data.layouts.windows import NO_TARGET
from bigctl.engine import experiment as experiments
from bigctl.engine import resolve
from bigctl.errors import ConfigError
from bigctl.models.decoder import Decoder
from bigctl.training import feed as feeds
from tests.conftest import Cli
from tests.models.test_decoder import build
from tests.recipes.test_gpt_lm import TINY
from tests.training.test_sharding import on_eight_devices

pytestmark = pytest.mark.fewer

PACKED = [*TINY, "recipe.packing=documents", "recipe.sample_tokens=0"]
MODELS = {
    "gpt": schema.Gpt(layers=1, width=16, heads=2, context=16),
    "llama": schema.Llama(layers=1, width=16, heads=4, kv_heads=2, context=16),
    "llama in a loop": schema.Llama(layers=2, width=16, heads=4, kv_heads=1, context=16, scan=True),
    "gpt anew in the backward pass": schema.Gpt(layers=2, width=16, heads=2, context=16, remat="full"),
}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Rows of 1 to 26 characters, so that some are longer than a window of 16."""
    file = tmp_path_factory.mktemp("documents") / "stories.jsonl"
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("abcde "), rng.integers(1, 27))) + "." for _ in range(150)]
    file.write_text("".join(json.dumps({"story": text}) + "\n" for text in texts))
    return f"data.path={file}"


def built(path: str, *overrides: str) -> Any:
    found = compose.compose([*PACKED, path, "data.field=story", *overrides])
    return experiments.build(found.config)


def alone(batch: dict[str, Any]) -> dict[str, jax.Array]:
    """The documents of a batch, one a row from its first place on, as rows of windows are that hold one text."""
    rows: dict[str, list[np.ndarray]] = {"inputs": [], "targets": []}
    for number in range(len(batch["inputs"])):
        for segment in range(1, batch["segments"][number].max() + 1):
            where = batch["segments"][number] == segment
            for name, filler in (("inputs", 0), ("targets", NO_TARGET)):
                values = batch[name][number][where]
                rows[name].append(np.pad(values, (0, len(where) - len(values)), constant_values=filler))
    return {name: jnp.asarray(np.stack(values)) for name, values in rows.items()}


def told(model: Decoder, rows: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy of the targets of rows, each of them one text, and how many there are."""
    logits = model.logits(model(rows["inputs"])).astype(jnp.float32)
    real, wanted = rows["targets"] != NO_TARGET, jnp.maximum(rows["targets"], 0)[..., None]
    found = jnp.take_along_axis(jax.nn.log_softmax(logits), wanted, -1)[..., 0]
    return -jnp.sum(jnp.where(real, found, 0)), jnp.sum(real)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if len(name) > 5 else ()) for name in MODELS]
)
def test_loss_and_gradients_are_those_of_each_document_alone(name):
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 27, 40)  # some are longer than a window of 16
    columns = {"inputs": rng.integers(0, 65, sizes.sum()), **pack(np.concatenate([[0], np.cumsum(sizes)]), 16)}
    layout = Packed(16, int(np.diff(columns["window_pieces"]).max()))
    batch = layout.gather(columns, np.linspace(0, layout.size(columns, training=True) - 1, 12).astype(int), None)
    single = alone(batch)
    assert batch["segments"].max() > 2 and batch["positions"].max() == 15 and len(single["inputs"]) > 15
    structure, params, rest = nnx.split(build(MODELS[name]), nnx.Param, ...)

    def packed(params: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(structure, params, rest)
        targets = jnp.asarray(batch["targets"])
        places = {each: jnp.asarray(batch[each]) for each in ("segments", "positions")}
        hidden = model(jnp.asarray(batch["inputs"]), key=jax.random.key(0), **places)
        sums = lm_loss.loss_sums(
            hidden, model.head_kernel(), jnp.maximum(targets, 0), targets != NO_TARGET, model.vocab_size
        )
        return sums.total, sums.weight

    def apart(params: Any) -> tuple[jax.Array, jax.Array]:
        return told(nnx.merge(structure, params, rest), single)

    both = jax.jit(lambda p: [jax.value_and_grad(loss, has_aux=True)(p) for loss in (packed, apart)])
    ((loss, weight), gradients), ((expected, count), wanted) = both(params)
    assert float(weight) == float(count) == (batch["targets"] != NO_TARGET).sum()
    assert float(loss / weight) == pytest.approx(float(expected / count), rel=1e-5)
    for values, others in zip(*map(jax.tree.leaves, (gradients, wanted)), strict=True):
        largest = float(jnp.abs(others).max())  # of the biases of keys 0, which rounding is not
        np.testing.assert_allclose(values, others, rtol=1e-5, atol=max(1e-5 * largest, 1e-6))


def test_an_evaluation_is_the_mean_over_all_documents_alone_and_is_reported(run, capsys):
    trained = package.load(run)
    dataset = resolve.prepare_data(trained.config, trained.run.tokenizer)
    columns = dataset.splits["validation"]
    rows = alone(dataset.batches.gather(columns, np.arange(dataset.size("validation")), None))
    tokens, ends = columns["inputs"], int((columns["inputs"] == 256).sum())
    loss, count = jax.jit(lambda: told(trained.model, rows))()
    assert int(count) == len(tokens) - (ends + (tokens[-1] != 256))  # all but the first of each document
    found = json.loads((run / "summary.json").read_text())["metrics"]
    assert found["val/loss"] == pytest.approx(float(loss / count), rel=1e-5)
    assert found["val/perplexity"] == pytest.approx(math.exp(found["val/loss"]))
    assert main(["report", str(run)]) == 0 and "report.html" in capsys.readouterr().out


@pytest.mark.slow
def test_where_a_run_is_cut_changes_no_bit(path):
    experiment, states = built(path, "model.dropout=0.1"), []
    columns = experiment.dataset.splits["train"]
    for limits in ([5], [2, 3]):
        feed = feeds.make_feed(experiment.programs, experiment.dataset.batches, columns, experiment.config)
        assert isinstance(feed, feeds.LoopFeed)
        state, done = experiment.programs.initialise(), 0
        for limit in limits:
            feed._length = limit
            state, count = feed.advance(state, done * 4, limit)
            done += count
        assert done == 5
        states.append(state)
    for one, other in zip(*map(jax.tree.leaves, states), strict=True):
        np.testing.assert_array_equal(one, other)


_EIGHT = """
import json, sys
import jax, numpy as np
import bigctl
from bigctl.engine import experiment
from bigctl.training import feed as feeds
result = {}
for mesh in ("single", "fsdp"):
    exp = experiment.build(bigctl.compose([*json.loads(sys.argv[1]), f"mesh={mesh}", "mesh.min_shard=1"]))
    feed = feeds.make_feed(exp.programs, exp.dataset.batches, exp.dataset.splits["train"], exp.config)
    state = exp.programs.initialise()
    for number in range(2):
        state, _ = feed.advance(state, number * 16, 1)
    sums = np.asarray(jax.device_get(state.sums["loss"]), np.float64)
    result[mesh] = {"loss": sums[0] / sums[1], "weight": sums[1], "devices": exp.programs.mesh.size}
print(json.dumps(result))
"""


@pytest.mark.slow
def test_eight_devices_train_as_one(path):
    overrides = [*PACKED, path, "data.field=story", "train.batch_size=16"]
    found = on_eight_devices(_EIGHT, json.dumps(overrides))
    assert [each["devices"] for each in found.values()] == [1, 8]
    assert found["fsdp"]["weight"] == found["single"]["weight"]
    assert found["fsdp"]["loss"] == pytest.approx(found["single"]["loss"], rel=1e-5)


# --- The command line -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(path: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tales"
    overrides = [
        *PACKED,
        path,
        "data.field=story",
        "train.steps=10",
        "train.tensorboard=false",
    ]
    package.train(overrides, folder, quiet=True)
    return folder


@pytest.mark.slow
def test_a_run_is_evaluated_and_writes_text(bigctl: Cli, run: Path):
    scored = bigctl.json("eval", str(run))["metrics"]
    assert scored["test/loss"] == json.loads((run / "summary.json").read_text())["metrics"]["test/loss"]
    assert bigctl("generate", str(run), "--prompt", "abc", "--max-new-tokens", "3").stdout


def test_a_preview_shows_where_documents_begin(bigctl: Cli, path: str):
    shown = bigctl("data", *PACKED, path, "data.field=story").stdout
    assert "documents, packed into windows of 16 tokens" in shown
    first = json.loads(Path(path.removeprefix("data.path=")).read_text().splitlines()[0])["story"]
    assert f"{len(first) + 1} tokens  {' '.join(first.split())}" in shown


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.boundaries=false"], "data.boundaries=false puts nothing between documents"),
        (["recipe.packing=windows", "recipe.end_token=5"], "recipe.end_token is not used"),
        (["recipe.end_token=-1"], "recipe.end_token cannot be -1"),
    ],
)
def test_what_does_not_go_together_is_refused(path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose.compose([*PACKED, path, "data.field=story", *overrides])
