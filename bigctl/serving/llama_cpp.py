"""Where llama.cpp is faster, which streams the weights of a large language model in four or eight bits: said once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import jax
from flax import nnx

from bigctl.errors import BigctlError
from bigctl.generation.generate import LanguageModel
from bigctl.inference.trained import TrainedRun
from bigctl.serving import log

LARGE = 2**28
"""Bytes of weights, more than the caches of a processor hold."""


def command(file: Path) -> str:
    """What serves a file of GGUF."""
    return f"llama-server -m {file} --port 8000"


def offer_run(name: str, trained: TrainedRun) -> None:
    """Say it of a run that can be written as GGUF."""
    if not _faster(trained.language_model):
        return
    from bigctl.inference.exporters import gguf_model

    with contextlib.suppress(BigctlError):
        gguf_model.require(trained)
        path = trained.run.path
        export = f"bigctl export {path} --format gguf --int4"
        offer(name, trained.language_model, f"{export}, then {command(path / 'gguf' / gguf_model.MODEL)}")


def offer(name: str, model: LanguageModel, how: str) -> None:
    """Say how llama.cpp serves a model, where it would be faster."""
    if _faster(model):
        said = "on a CPU llama.cpp writes several times as fast with a model of this size"
        log.write(level="info", event="hint", model=name, message=f"{said}: {how}")


def _faster(model: LanguageModel) -> bool:
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model.model, nnx.Param)))
    return taken > LARGE and jax.default_backend() == "cpu"
