"""Optuna with joblib, and Keras Tuner, as their users would write the study of `bench_sweep_peers.py`."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN = (64, 32)
TOO_HIGH = 1e30
"""A learning rate with which nothing that is computed stays finite."""


@dataclass(frozen=True)
class Spec:
    """The study: every learning rate with every seed."""

    lrs: tuple[float, ...]
    seeds: int
    epochs: int
    batch_size: int
    examples: int
    jobs: int

    @property
    def trials(self) -> int:
        return len(self.lrs) * self.seeds

    @property
    def epoch(self) -> int:
        """Steps of an epoch, the last batch being a short one."""
        return -(-self.examples // self.batch_size)


def yes(count: int, of: int) -> str:
    if not of:
        return "none by then"
    return f"{'yes' if count >= of else 'no'}, {count} of {of}"


# ---------------------------------------------------------------------------------------------------- Optuna and joblib


def _spec(folder: Path) -> Spec:
    found = json.loads((folder / "spec.json").read_text())
    return Spec(**{**found, "lrs": tuple(found["lrs"])})


def run_optuna(folder: Path) -> None:
    import joblib

    spec = _spec(folder)
    study = _optuna_study(folder, spec)
    while not study.sampler.is_exhausted(study):  # two workers may have drawn the same point
        joblib.Parallel(n_jobs=spec.jobs)(joblib.delayed(_optuna_worker)(folder, spec) for _ in range(spec.jobs))


def _optuna_study(folder: Path, spec: Spec) -> Any:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    grid = {"lr": list(spec.lrs), "seed": list(range(spec.seeds))}
    return optuna.create_study(
        study_name="lr",
        storage=JournalStorage(JournalFileBackend(str(folder / "journal.log"))),
        sampler=optuna.samplers.GridSampler(grid, seed=0),  # all must number the points in the same way
        direction="maximize",
        load_if_exists=True,
    )


def _optuna_worker(folder: Path, spec: Spec) -> None:
    import jax
    import jax.numpy as jnp
    import optax

    rows = np.load(folder / "rows.npz")
    x, y, vx, vy = (jnp.asarray(rows[name]) for name in ("x", "y", "vx", "vy"))
    widths = (x.shape[1], *HIDDEN, 1)
    rule = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)

    def logits(params: Any, x: Any) -> Any:
        for i, (w, b) in enumerate(params):
            x = x @ w + b if i == 0 else jax.nn.relu(x) @ w + b
        return x[:, 0]

    def loss(params: Any, x: Any, y: Any, weight: Any) -> Any:
        each = optax.sigmoid_binary_cross_entropy(logits(params, x), y)
        return (each * weight).sum() / weight.sum()

    @jax.jit
    def initial(key: Any) -> Any:
        keys = jax.random.split(key, len(widths) - 1)
        pairs = zip(keys, widths, widths[1:], strict=False)
        return [(jax.nn.initializers.he_normal()(k, (a, b)), jnp.zeros(b)) for k, a, b in pairs]

    @jax.jit
    def epoch(params: Any, state: Any, key: Any, lr: Any) -> Any:
        state.hyperparams["learning_rate"] = lr
        size, short = spec.epoch * spec.batch_size, spec.epoch * spec.batch_size - spec.examples
        order = jnp.pad(jax.random.permutation(key, spec.examples), (0, short)).reshape(spec.epoch, -1)
        weights = (jnp.arange(size) < spec.examples).astype(jnp.float32).reshape(spec.epoch, -1)

        def step(carry: Any, batch: Any) -> Any:
            params, state = carry
            rows, weight = batch
            updates, state = rule.update(jax.grad(loss)(params, x[rows], y[rows], weight), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, state), (order, weights))
        return params, state, ((logits(params, vx) > 0) == vy).mean()

    def objective(trial: Any) -> float:
        lr = trial.suggest_categorical("lr", list(spec.lrs))
        key = jax.random.key(trial.suggest_categorical("seed", list(range(spec.seeds))))
        params, best = initial(key), 0.0
        state = rule.init(params)
        for number in range(spec.epochs):
            params, state, accuracy = epoch(params, state, jax.random.fold_in(key, number), lr)
            trial.report(float(accuracy), (number + 1) * spec.epoch)
            best = max(best, float(accuracy))
        return best

    _optuna_study(folder, spec).optimize(objective)


def optuna_facts(folder: Path, spec: Spec) -> dict[str, str]:
    study = _optuna_study(folder, spec)
    done = optuna_results(folder)
    curves = {(t.params["lr"], t.params["seed"]) for t in study.trials if len(t.intermediate_values) > 1}
    weights = [f for f in folder.rglob("*") if f.suffix in (".npz", ".ckpt", ".msgpack", ".safetensors", ".pkl")]
    kept = json.dumps(study.user_attrs) + json.dumps([t.user_attrs for t in study.trials])
    return {
        "best validation accuracy (mean over seeds)": f"{_best(done):.4f}",
        "weights of every trial": yes(len([f for f in weights if not f.is_symlink()]), spec.trials),
        "curve of every trial": yes(len(curves), spec.trials),
        "mean and std over seeds of every point": yes(kept.count("std"), len(spec.lrs)),
        "effect of the parameter": yes(kept.count("importance"), 1),
        "command that trains the winner again": yes(kept.count("command"), 1),
        "test score of the winner": yes(kept.count("test"), 1),
    }


def _best(results: Mapping[tuple[float, int], float]) -> float:
    """The best mean over seeds."""
    points: dict[float, list[float]] = {}
    for (lr, _), value in results.items():
        points.setdefault(lr, []).append(value)
    return max((statistics.mean(values) for values in points.values()), default=float("nan"))


def optuna_results(folder: Path) -> dict[tuple[float, int], float]:
    import optuna

    trials = _optuna_study(folder, _spec(folder)).trials
    done = [t for t in reversed(trials) if t.state == optuna.trial.TrialState.COMPLETE]
    return {(t.params["lr"], t.params["seed"]): t.value for t in done}


def optuna_failures(folder: Path) -> int:
    import optuna

    failed = [
        t for t in _optuna_study(folder, _spec(folder)).trials
        if t.state == optuna.trial.TrialState.FAIL and t.params.get("lr") == TOO_HIGH
    ]  # fmt: skip
    return sum(any("reason" in key or "error" in key for key in (*t.system_attrs, *t.user_attrs)) for t in failed)


# --------------------------------------------------------------------------------------------------------- Keras Tuner


def run_keras(folder: Path) -> None:
    os.environ["KERAS_BACKEND"] = "jax"
    import keras
    import keras_tuner

    spec, rows = _spec(folder), np.load(folder / "rows.npz")

    def build(hp: Any) -> Any:
        layers = [keras.layers.Dense(width, activation="relu", kernel_initializer="he_normal") for width in HIDDEN]
        model = keras.Sequential([keras.Input(rows["x"].shape[1:]), *layers, keras.layers.Dense(1)])
        model.compile(
            optimizer=keras.optimizers.Adam(hp.Choice("lr", list(spec.lrs))),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
        )
        return model

    tuner = keras_tuner.GridSearch(
        build,
        objective=keras_tuner.Objective("val_accuracy", "max"),
        executions_per_trial=spec.seeds,
        directory=str(folder),
        project_name="tuner",
        seed=0,
    )
    tuner.search(
        rows["x"], rows["y"], epochs=spec.epochs, batch_size=spec.batch_size, shuffle=True,
        validation_data=(rows["vx"], rows["vy"]), verbose=0,
    )  # fmt: skip


def _keras_trials(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((folder / "tuner").glob("trial_*/trial.json"))]


def keras_results(folder: Path) -> dict[tuple[float, int], float]:
    """Means of the objective by learning rate, for each execution: their own values are not kept."""
    found = {}
    for trial in _keras_trials(folder):
        observations = trial.get("metrics", {}).get("metrics", {}).get("val_accuracy", {}).get("observations", [])
        if trial["status"] != "COMPLETED" or not observations:
            continue
        for number in range(_spec(folder).seeds):
            found[trial["hyperparameters"]["values"]["lr"], number] = observations[0]["value"][0]
    return found


def keras_facts(folder: Path, spec: Spec) -> dict[str, str]:
    text = json.dumps(_keras_trials(folder))
    steps = [
        {o["step"] for o in t.get("metrics", {}).get("metrics", {}).get("val_accuracy", {}).get("observations", [])}
        for t in _keras_trials(folder)
    ]
    weights = list((folder / "tuner").glob("trial_*/*.weights.h5"))
    return {
        "best validation accuracy (mean over seeds)": f"{_best(keras_results(folder)):.4f}",
        "weights of every trial": yes(len(weights), spec.trials),
        "curve of every trial": yes(spec.seeds * sum(len(s) > 1 for s in steps), spec.trials),
        "mean and std over seeds of every point": yes(text.count('"std"'), len(spec.lrs)),
        "effect of the parameter": yes(text.count("importance"), 1),
        "command that trains the winner again": yes(text.count("command"), 1),
        "test score of the winner": yes(text.count("test"), 1),
    }


def keras_failures(folder: Path) -> int:
    failed = [t for t in _keras_trials(folder) if t["hyperparameters"]["values"].get("lr") == TOO_HIGH]
    seeds = _spec(folder).seeds
    return seeds * sum(t["status"] in ("FAILED", "INVALID") and bool(t.get("message")) for t in failed)
