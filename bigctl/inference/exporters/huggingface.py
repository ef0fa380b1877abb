"""`--format hf`: a trained BERT, GPT or Llama as a folder that Hugging Face transformers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigctl.data.target import CLASSES, TOKEN_CLASS
from bigctl.errors import RunError
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.trained import TrainedRun
from bigctl.interop import huggingface, vision_export
from bigctl.interop.tensors import read_json
from bigctl.runs import generation_config
from bigctl.training.checkpoints.arrays import flatten


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`."""
    huggingface.require_exportable(trained.config.model, str(trained.run.path))


def write(trained: TrainedRun, folder: Path) -> Exported:
    """See `formats.Exporter`."""
    export_run(trained, folder)
    config = read_json(folder / "config.json")
    (name,) = config["architectures"]
    return Exported(huggingface.loading_lines(config, str(folder)), {"what": name, "class": name})


def export_run(trained: TrainedRun, folder: Path) -> Path:
    """Write the model of a run for `transformers`, see `huggingface.export_model`.

    Raises:
        ConfigError: if transformers has no such model, or the folder holds something already.
        RunError: if the folder cannot be written, or the run has lost its tokenizer.
    """
    run = trained.run
    huggingface.require_exportable(trained.config.model, str(run.path))
    if vision_export.knows(trained.config.model):
        return _export_vision(trained, folder)
    if not run.tokenizer.is_file():
        raise RunError("the run has lost its tokenizer.json", where=str(run.path))
    target = trained.features.target
    tags = target.kind == TOKEN_CLASS
    settings = dict(trained.features.tokenizer or {})
    return huggingface.export_model(
        huggingface.Export(
            model=trained.config.model,
            params={name: np.asarray(values, np.float32) for name, values in flatten(trained.params).items()},
            tokenizer=run.tokenizer,
            settings=settings,
            classes=target.names or None,
            per_token=tags,
            several=target.kind == CLASSES,
            generation_config=generation_config.read_generation_config(run, settings),
            about=f"{run.path.name}, step {trained.step}",
        ),
        folder,
    )


def _export_vision(trained: TrainedRun, folder: Path) -> Path:
    return huggingface.write_vision(exported(trained), folder)


def exported(trained: TrainedRun) -> vision_export.Export:
    """What is exported of a classifier of pictures."""
    features, recipe = trained.features, trained.config.recipe
    values = {**flatten(trained.params), **flatten(trained.variables)}
    height, width, channels = features.shape
    return vision_export.Export(
        model=trained.config.model,
        values={name: np.asarray(value, np.float32) for name, value in values.items()},
        shape=(height, width, channels),
        mean=tuple(getattr(recipe, "mean", None) or features.mean),
        std=tuple(getattr(recipe, "std", None) or features.std),
        classes=features.target.names,
        several=features.target.kind == CLASSES,
        about=f"{trained.run.path.name}, step {trained.step}",
    )
