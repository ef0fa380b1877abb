"""The table of commands. Each is a module here, with `add_arguments(parser)`, `run(options)` and `EXAMPLES`."""

from __future__ import annotations

import importlib
from types import ModuleType

COMMANDS = {
    "train": "train an experiment, or resume one",
    "resume": "resume a run with its own configuration",
    "eval": "score a trained model on a split",
    "predict": "label files or texts with a trained model",
    "explain": "show what each token, pixel or column adds to a model's answer",
    "audit": "tell who was trained on, and what that proves about a model's privacy",
    "generate": "let a language model write text",
    "serve": "answer requests with trained models, over HTTP",
    "export": "write a trained model for another library",
    "compress": "make a run of a run with rounded, pruned or fewer weights",
    "ls": "list recipes, models, optimizers, schedules, data, meshes, experiments, runs",
    "show": "print the composed configuration and where each value comes from",
    "baseline": "train the cheap answer to a data set, which a model must beat",
    "data": "look at a data set, prepare or clean its cache",
    "sweep": "train every point of a search space and rank them",
    "runs": "table of runs; remove or prune them",
    "info": "everything known about a run",
    "compare": "runs side by side; --assert-equal for CI",
    "report": "one HTML page about a run or a sweep",
    "ui": "show all runs in the browser of this machine, with live curves",
    "verify": "check that a run's files are intact",
    "verify-resume": "kill an experiment at random moments, compare with an uninterrupted run",
    "new": "write a working recipe, model or data format of your own, with a test",
    "plan": "what a step costs on a machine that may not be here: memory, FLOPs, time",
    "doctor": "check the installation and the devices",
}

KEEP_MEMORY = frozenset({"train", "resume", "sweep", "eval", "predict", "explain", "audit", "compress"})
"""Those that compute one large batch after the other, until they are done: see `parallel.host_memory`."""


def load_command(name: str) -> ModuleType:
    """The module of a command: `bigctl.cli.verify_resume` for "verify-resume"."""
    return importlib.import_module(f"bigctl.cli.{name.replace('-', '_')}")
