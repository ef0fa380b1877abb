"""A run made of a run: the same configuration and data, its weights rounded, pruned, averaged or fewer, scored anew."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigctl.config import compose as composing
from bigctl.data.dataset import Dataset
from bigctl.engine import experiment
from bigctl.errors import RunError
from bigctl.files import read_regular, sha256, write_json
from bigctl.inference.compression import calibration, sensitivity
from bigctl.inference.compression import static as statics
from bigctl.inference.compression.method import PRUNE, SOUP, STRUCTURED, WANDA, Method
from bigctl.inference.compression.sized import Sized
from bigctl.inference.compression.soup import stirred
from bigctl.inference.compression.structured import Shrunk, shrunk
from bigctl.inference.compression.weights import Smaller, smaller, unchanged
from bigctl.inference.exporters import beside
from bigctl.inference.exporters.folder import source
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from bigctl.interop.folders import whole_or_nothing
from bigctl.runs import directory
from bigctl.runs.directory import RunDirectory
from bigctl.runs.metrics_file import step_of_line
from bigctl.training.checkpoints.arrays import flatten, shapes
from bigctl.training.checkpoints.store import Checkpoints
from bigctl.training.state import Tree, Weights, zeros_like

MISTAKES = 24


@dataclass(frozen=True)
class Compressed:
    """What was made: the new run, its table as `summary.json` has it under `compression`, and lines for people."""

    path: Path
    table: dict[str, Any]
    lines: list[str]


def require_new(path: Path) -> None:
    """Raises RunError for a folder that is taken."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise RunError("exists already", where=str(path), hint="give another --name, or --run-dir")


def require_source(trained: TrainedRun) -> tuple[Network, Dataset]:
    """The network and the data of a run that can be compressed.

    Raises:
        RunError: if it is compressed already, fine-tuned for an export in integers, or not finished, or if its data
            cannot be had.
    """
    where, record = str(trained.run.path), trained.run.record()
    if "compression" in record:
        origin = (record.get("derived_from") or {}).get("derived_from", "the run it was made from")
        what = f"is compressed already ({(record['compression'] or {}).get('method')})"
        raise RunError(what, where=where, hint=f"compress {origin} another way")
    if not trained.run.summary_file.is_file():
        raise RunError("has not finished training", where=where, hint=f"bigctl resume {where}")
    if (quantize := trained.config.train.quantize) is not None:
        hint = f"bigctl export {where} --format onnx --{quantize} writes it; compress the run that it began with"
        raise RunError(f"was fine-tuned for its export in {quantize}", where=where, hint=hint)
    network = Network.of(trained)
    if network.dataset is None:
        raise RunError("its data cannot be had, so what it costs is not known", where=where, hint="bring it back")
    return network, network.dataset


def compress(trained: TrainedRun, method: Method, path: Path) -> Compressed:
    """Make a run of a run in a new folder: all of it, or nothing.

    Raises:
        RunError: as `require_new` and `require_source`; if the model has no layers for the method.
    """
    require_new(path)
    network, dataset = require_source(trained)
    if trained.threshold is not None:  # the new run has none of its own, and is scored as it will be used
        trained = trained.with_threshold(None)
    where = str(trained.run.path)
    found, other, more, said = changed(trained, method, network, dataset)
    copied = Network.of(other) if method.method == STRUCTURED else network
    whole = {**network.weights, **found.values, **_arrays(other.variables)}
    weights = copied.weights if method.method == STRUCTURED else whole
    if method.ranges:
        static = statics.made(trained, method, network, dataset)
        compared, more, said = static.compared, {**more, **static.facts}, [*said, *static.lines]
    else:
        static = None
        compared = beside.compare(trained, network, network.copy(network.weights), copied.copy(weights), where)
    table = {**_table(trained, method, found, compared), **more}
    scores = _scores(other, trained.run.summary())
    with whole_or_nothing(path) as partial:
        if static is not None:
            RunDirectory(partial).static.write_bytes(static.content)
        _write(trained, other, method, RunDirectory(partial), {**scores, "run": str(path), "compression": table})
    return Compressed(
        path, table, [*said, *_scored(compared, method, _tested(trained, scores, ranges=bool(method.ranges)))]
    )


def changed(
    trained: TrainedRun, method: Method, network: Network, dataset: Dataset, *, sensitive: bool = True
) -> tuple[Smaller, TrainedRun, dict[str, Any], list[str]]:
    """What became of the weights, the run with them, what the table says besides, and lines for people; `sensitive`
    asks each layer too."""
    more: dict[str, Any] = {}
    if method.method == STRUCTURED:
        cut = shrunk(trained, method, dataset, sensitive=sensitive)
        found = Smaller(cut.values, len(cut.removed), {}, cut.bytes_before, cut.bytes_after, 0.0)
        more = {"rows": cut.rows, "removed": cut.removed, "model": cut.changed, "loss_without_layer": cut.without}
        more |= {"sensitivity": cut.sensitivity.to_json()} if cut.sensitivity else {}
        return found, cut.applied(trained), more, _cut_lines(method, cut, dataset)
    norms, variables = {}, None
    if method.method == PRUNE and method.by == WANDA:
        seen = list(calibration.batches(dataset, method.calibration))
        norms = calibration.norms(network, seen)
        more = {"rows": calibration.count(seen)}
    if method.method == SOUP:
        soup = stirred(trained, method)
        variables = soup.variables
        size = sum(values.nbytes for values in soup.values.values())
        found = Smaller(soup.values, len(soup.values), {}, size, size, 0.0)
        more = {"ingredients": list(soup.used), "left_out": list(soup.left_out)}
    else:
        found = smaller(_arrays(trained.params), method, norms, str(trained.run.path))
    found = dataclasses.replace(found, left={**found.left, **unchanged(_arrays(trained.variables))})
    params = jax.tree.unflatten(jax.tree.structure(trained.params), list(found.values.values()))
    other = trained.with_params(params, variables)
    said = _soup_lines(method, **more) if method.method == SOUP else _lines(method, found)
    if "rows" in more:
        said.append(f"inputs of layers: from {calibration.told(more['rows'], dataset)}")
    if sensitive and method.method != SOUP:
        sized = Sized.of(trained)
        values = sized.arrays(Weights(trained.params, trained.variables))
        told = sensitivity.of_weights(sized, values, found.values, dataset)
        more, said = {**more, "sensitivity": told.to_json()}, [*said, *told.lines]
    return found, other, more, said


def _arrays(tree: Tree) -> dict[str, np.ndarray]:
    """By path, float32 what is floating."""
    return {
        name: np.asarray(leaf, np.float32) if jnp.issubdtype(leaf.dtype, jnp.floating) else np.asarray(leaf)
        for name, leaf in flatten(tree).items()
    }


def _table(trained: TrainedRun, method: Method, found: Smaller, compared: beside.Beside) -> dict[str, Any]:
    about = {"layers": found.layers, "left": dict(found.left), "zeros": found.zeros}
    sizes = {"bytes_before": found.before, "bytes_after": found.after}
    return {**source(trained), **method.settings, **about, **sizes, **compared.to_json()}


def _cut_lines(method: Method, cut: Shrunk, dataset: Dataset) -> list[str]:
    keys = ", ".join(f"model.{key} {old} -> {new}" for key, (old, new) in cut.changed.items() if key != "head_dim")
    shown = f"; chosen on {calibration.told(cut.rows, dataset)}" if cut.rows else ""
    lines = [f"{method}: {keys}{shown}", f"{cut.bytes_before:,} -> {cut.bytes_after:,} bytes of weights"]
    if cut.without:
        losses = ", ".join(f"{number}: {loss:.4f}" for number, loss in enumerate(cut.without))
        lines.append(f"loss on these rows without one layer: {losses}")
    return lines + (cut.sensitivity.lines if cut.sensitivity else [])


def _soup_lines(method: Method, ingredients: Sequence[str], left_out: Sequence[str]) -> list[str]:
    lines = [f"{method}: the mean of {len(ingredients)} checkpoints, {', '.join(ingredients)}"]
    return lines + ([f"left out, as validation is worse with them: {', '.join(left_out)}"] if left_out else [])


def _lines(method: Method, found: Smaller) -> list[str]:
    left = ", ".join(f"{name} ({size:,} bytes)" for name, size in found.left.items())
    left = f"; left as they were: {left}" if left else ""
    lines = [f"{method}: {found.layers} matrices{left}"]
    if method.method == PRUNE:
        lines.append(
            f"{100 * found.zeros:.1f}% zeros; {found.before:,} -> {found.after:,} bytes if zeros are not stored"
        )
    else:
        lines.append(f"{found.before:,} -> {found.after:,} bytes as integers with their scales")
    return lines


def _scored(compared: beside.Beside, method: Method, tested: Sequence[str]) -> list[str]:
    lines = []
    if compared.scored:
        around = [
            f"{value:.4f} +- {each:.4f}"
            for value, each in zip((compared.before, compared.after), compared.around, strict=True)
        ]
        lines.append(f"{compared.scored}, each by itself: {around[0]} -> {around[1]}")
    if method.method == STRUCTURED:
        return [*lines, *compared.lines, *tested, "bigctl train model.init_from= trains the smaller network on"]
    if method.ranges:
        return [
            *lines,
            *compared.lines,
            *tested,
            "`bigctl export --format onnx --int8` writes this file; jax rounds weights alone",
        ]
    lines += [line for line in compared.lines if not line.startswith("slower")]  # the same computation, either way
    lines += tested
    if method.method == SOUP:
        return lines
    lines.append(
        "weights stay float32 in this run, and jax is no faster with them: `bigctl export --int8` writes small files"
    )
    return lines


def _tested(trained: TrainedRun, scores: dict[str, Any], *, ranges: bool) -> list[str]:
    """The metric that the run was selected by, of its test split, as it was and as it is."""
    summary = trained.run.summary()
    name = str(summary.get("selected_by") or trained.task.metric).replace("val/", "test/")
    was, now = (found.get("metrics", {}).get(name) for found in (summary, scores))
    if not isinstance(was, float) or not isinstance(now, float) or summary.get("selected_step") != trained.step:
        return []
    how = " in jax, where weights alone are rounded" if ranges else ""
    return [f"{name} {was:.4f} -> {now:.4f}{how}, scored once for this run"]


# -------------------------------------------------------------------------------------------------------------- writing

_OF_TRAINING = ("timings", "examples_per_s", "tokens_per_s", "mfu", "profile", "waiting")
"""Fields of a summary that tell how its training went, which was another run's."""


def _write(trained: TrainedRun, other: TrainedRun, method: Method, made: RunDirectory, summary: dict[str, Any]) -> None:
    """All of a run into a folder that nobody else knows yet; its record last, so that what is cut short is no run."""
    run = trained.run
    overrides = run.overrides.read_text(encoding="utf-8").splitlines() if run.overrides.is_file() else []
    text, resized = run.read_config(), other.config.model != trained.config.model
    if resized:
        config = composing.from_yaml(text, where=str(run.config))
        text = composing.to_yaml(dataclasses.replace(config, model=other.config.model))
    made.write_config(text, overrides)
    for file in (run.tokenizer, run.generation):
        if file.is_file():
            shutil.copyfile(file, made.path / file.name)
    lines = read_regular(run.metrics).splitlines(keepends=True)
    made.metrics.write_bytes(b"".join(line for line in lines if step_of_line(line) <= trained.step))
    _save(trained, other, made, summary["metrics"])
    before = {name: value for name, value in run.summary().items() if name not in _OF_TRAINING}
    write_json(made.summary_file, {**before, **summary})
    count = sum(leaf.size for leaf in jax.tree.leaves(other.params))
    record = {name: value for name, value in run.record().items() if name not in ("updated", "message")}
    record |= {"created": time.time(), "derived_from": source(trained), "compression": method.settings}
    record |= {"static": sha256(made.static)} if made.static.is_file() else {}
    record |= {"parameters": count} if resized else {}
    made.update_record(**{**record, "status": directory.COMPLETE, "exit_code": 0})


def _scores(other: TrainedRun, before: dict[str, Any]) -> dict[str, Any]:
    """Fields of the summary: metrics of the validation split, and of the test split where the run was scored on it."""
    found: dict[str, Any] = {"selected_step": other.step, "step": other.step}
    metrics = _plain(other.evaluate("validation"))
    if any(name.startswith("test/") for name in before.get("metrics", {})):
        tested = other.score("test", errors=MISTAKES)
        metrics |= _plain(tested.metrics)
        found |= {"confusion": tested.metrics.get("test/confusion"), "curves": tested.curves, "mistakes": tested.errors}
    return {**found, "metrics": metrics}


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if not name.endswith("/confusion")}


def _save(trained: TrainedRun, other: TrainedRun, made: RunDirectory, metrics: dict[str, Any]) -> None:
    """The checkpoint: the new weights, and zeros for what only training needs."""
    kept = Checkpoints(trained.run.checkpoints)
    saved = kept.find(trained.step)
    state = kept.restore(saved, experiment.rebuild_training(trained.config, trained.features).abstract_state)
    kept.close()
    params = other.params
    averaged = {"ema": params} if trained.config.train.ema else {}
    state = dataclasses.replace(state, params=params, **averaged, variables=other.variables)
    opt_state = zeros_like(state.opt_state)
    if other.config.model != trained.config.model:
        wanted = experiment.rebuild_training(other.config, trained.features).abstract_state.opt_state
        opt_state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=leaf.sharding), wanted)
    state = dataclasses.replace(state, opt_state=opt_state)
    progress = saved.progress
    validated = {name: value for name, value in metrics.items() if name.startswith("val/")}
    progress.best_step, progress.best_metrics, progress.stale = progress.step, validated, 0
    progress.best = validated.get(progress.metric, progress.best)
    meta: dict[str, Any] = {name: saved.meta[name] for name in ("data", "tokenizer") if name in saved.meta}
    checkpoints = Checkpoints(made.checkpoints)
    checkpoints.save(state, progress, {"shapes": shapes(state), **meta})
    checkpoints.wait(last=True)
    checkpoints.close()


def destination(trained: TrainedRun, method: Method, name: str | None, run_dir: Path | None) -> Path:
    """Where the new run lives: as told, or beside the run, named after it and the method."""
    if name is not None or run_dir is not None:
        return directory.choose([], name=name, run_dir=run_dir, fresh=False)  # `require_new` refuses what is taken
    return trained.run.path.with_name(f"{trained.run.path.name}-{method.method}")
