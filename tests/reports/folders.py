"""Folders of runs and sweeps as pages are made of, written by hand: nothing is trained."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

EVIL = "</script><script>document.title='hurt'</script><img src=x onerror=\"document.title='hurt'\">"
"""What a text may hold and must not do."""

_spec = importlib.util.spec_from_file_location("_study", Path(__file__).parents[2] / "scripts" / "_study.py")
assert _spec is not None and _spec.loader is not None
study = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(study)


def run(folder: Path, *, length: int = 60, classes: int = 3, **record: Any) -> Path:
    """A complete classification run, with a gap in a curve and texts that try to break out of the page."""
    folder.mkdir(parents=True)
    names = [EVIL, *(f"class {k}" for k in range(1, classes))]
    lines = []
    for step in range(1, length + 1):
        loss = None if step == length // 2 else 2 * math.exp(-step / 20)
        lines.append(
            {"step": step, "epoch": step / 10, "train/loss": loss, "lr": 0.1, "perf/examples_per_s": 50.0 + step}
        )
        if step % 5 == 0:
            lines.append(
                {"step": step, "val/loss": 2 * math.exp(-step / 30), "val/accuracy": step / 100, "val/f1": 0.5}
            )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    matrix = [[9 if t == p else int(t + 1 == p) for p in range(classes)] for t in range(classes)]
    summary = {
        "schema": 1, "run": str(folder), "recipe": "cnn_cls", "status": "complete", "step": length, "stopped": "",
        "selected_step": length, "selected_by": "val/accuracy", "parameters": 1234, "examples_per_s": 70.0,
        "metrics": {"val/accuracy": 0.6, "val/loss": 0.27, "test/accuracy": 0.58},
        "confusion": matrix, "classes": names,
        "timings": {"wall": 9.0, "train": 5.0, "compile": 2.0, "evaluate": 0.5, "checkpoint": 0.1, "data_wait": 0.0},
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    whole = {
        "schema": 1, "created": 1.7e9, "updated": 1.7e9, "status": "complete", "recipe": "cnn_cls", "message": "",
        "overrides": ["recipe=cnn_cls", "optimizer.lr=0.1"], "packages": {"jax": "0.10.2"}, "parameters": 1234,
        "starts": [{"time": 1.7e9, "step": 0, "argv": ["bigctl", "train", "recipe=cnn_cls", "optimizer.lr=0.1"]}],
        "data": {"sizes": {"train": 10}, "fingerprint": "ab", "features": {"kind": "image", "shape": [8, 8, 1]}},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(whole | record))
    (folder / "config.yaml").write_text("recipe: {kind: cnn_cls}\noptimizer: {kind: adamw, lr: 0.1}\nseed: 0\n")
    samples = [{"step": 5, "prompt": "Once", "text": EVIL}, {"step": 10, "prompt": "Once", "text": " upon a time"}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples) + '{"step": 1')
    (folder / "log.txt").write_text("first line\nlast line\n")
    return folder
