"""A sweep made up for pages and their tests: a folder as a finished sweep leaves it, without any training."""

from __future__ import annotations

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

METRIC = "val/accuracy"


def make(folder: Path, *, points: int = 12, seeds: int = 2, length: int = 200, failed: int = 1) -> Path:
    """Write a sweep over learning rate, width and optimizer: `points` x `seeds` trials of `length` points each."""
    rng = random.Random(0)
    space = [
        {
            "optimizer.lr": f"{10 ** rng.uniform(-4.5, -1):.3g}",
            "model.width": str(rng.choice((32, 64, 128))),
            "optimizer": rng.choice(("adamw", "sgd", "muon")),
        }
        for _ in range(points)
    ]
    trials: list[dict[str, Any]] = []
    for point in space:
        for seed in range(seeds):
            trials.append(_trial(folder, len(trials), point, seed, length, rng, failed > len(trials) - 3 >= 0))
    entries = [_point(point, [t for t in trials if t["point"] is point]) for point in space]
    entries.sort(key=lambda entry: (entry["mean"] is None, -(entry["mean"] or 0)))
    for rank, entry in enumerate(entries, 1):
        entry["rank"] = rank if entry["mean"] is not None else None
    keys = list(space[0])
    board = {
        "schema": 1, "sweep": str(folder), "metric": METRIC, "mode": "max",
        "status": {s: n for s in ("complete", "failed") if (n := sum(t["status"] == s for t in trials))},
        "axes": [
            {"key": keys[0], "values": [], "low": 3e-5, "high": 0.1, "log": True, "integer": False},
            {"key": keys[1], "values": ["32", "64", "128"], "low": None, "high": None, "log": False},
            {"key": keys[2], "values": ["adamw", "sgd", "muon"], "low": None, "high": None, "log": False},
        ],
        "points": entries, "trials": trials,
        "effects": [
            {"key": key, "importance": value, "levels": []} for key, value in zip(keys, (0.71, 0.18, 0.06), strict=True)
        ],
        "pareto": {"metrics": [METRIC, "val/loss"], "points": [0, 1]},
        "failures": [
            {name: t[name] for name in ("id", "message", "log")} | {"label": f"lr={t['point'][keys[0]]}"}
            for t in trials if t["status"] == "failed"
        ],
        "winner": {
            "point": entries[0]["point"], "trials": entries[0]["trials"],
            "command": "bigctl train recipe=cnn_cls " + " ".join(f"{k}={v}" for k, v in entries[0]["point"].items()),
            **{name: entries[0][name] for name in ("mean", "std", "n")},
            "test": {"test/accuracy": {"mean": 0.953, "std": 0.004, "n": seeds}},
        },
    }  # fmt: skip
    (folder / "leaderboard.json").write_text(json.dumps(board))
    return folder


def _trial(
    folder: Path, number: int, point: dict[str, str], seed: int, length: int, rng: random.Random, failed: bool
) -> dict[str, Any]:
    identity = f"{number:012x}"
    run = folder / "trials" / identity
    run.mkdir(parents=True)
    optimum = -(abs(math.log10(float(point["optimizer.lr"])) + 2.5) ** 2) * 0.06
    best = 0.93 + optimum + 0.01 * math.log2(int(point["model.width"]) / 32) + rng.gauss(0, 0.005)
    lines, accuracy, loss = [], 0.0, 0.0
    for step in range(1, length + 1):
        done = 1 - math.exp(-5 * step / length)
        accuracy, loss = best * done + rng.gauss(0, 0.006), 2.3 * (1 - best * done) + rng.gauss(0, 0.01)
        training = {"step": 10 * step, "epoch": step / 50, "train/loss": loss * 0.9 + rng.gauss(0, 0.03), "lr": 0.001}
        lines.append(json.dumps({"step": 10 * step, "epoch": step / 50, METRIC: accuracy, "val/loss": loss}))
        lines.append(json.dumps(training))
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    record = {"schema": 1, "created": 1.0, "status": "failed" if failed else "complete", "recipe": "cnn_cls"}
    (run / "run.json").write_text(json.dumps(record))
    return {
        "id": identity, "number": number, "seed": seed, "point": point, "status": record["status"], "run": str(run),
        "metrics": {} if failed else {METRIC: accuracy, "val/loss": loss}, "step": 10 * length,
        "seconds": round(rng.uniform(20, 40), 1), "message": "the loss is not finite at step 40" if failed else "",
        "log": f"{run}/log.txt",
    }  # fmt: skip


def _point(point: dict[str, str], trials: list[dict[str, Any]]) -> dict[str, Any]:
    def spread(name: str) -> dict[str, Any]:
        values = [t["metrics"][name] for t in trials if name in t["metrics"]]
        mean = statistics.fmean(values) if values else None
        return {"mean": mean, "std": statistics.stdev(values) if len(values) > 1 else None, "n": len(values)}

    return {
        "rank": None, "point": point, **spread(METRIC), "seconds": sum(t["seconds"] for t in trials),
        "metrics": {name: spread(name) for name in (METRIC, "val/loss")}, "trials": [t["id"] for t in trials],
    }  # fmt: skip
