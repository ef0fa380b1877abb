"""`--format hf`: a trained BERT, GPT or Llama as a folder that Hugging Face transformers loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigctl.data.target import CLASSES, TOKEN_CLASS
from bigctl.errors import ConfigError, RunError
from bigctl.inference.exporters import folder as folders
from bigctl.inference.exporters import reloaded
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.exporters.network import Network
from bigctl.inference.trained import TrainedRun
from bigctl.interop import huggingface, pictures, vision_export
from bigctl.interop.folders import Finish, as_it_is, require_new
from bigctl.interop.pictures import Pixels
from bigctl.interop.tensors import read_json
from bigctl.runs import generation_config
from bigctl.training.checkpoints.arrays import flatten

_TOKENS = [
    ("input_ids", "int64 [batch, length]"),
    ("attention_mask", "int64 [batch, length], 1 for tokens of the text"),
    ("token_type_ids", "int64 [batch, length], 1 from the second text on"),
]
_PIXELS = [("pixel_values", "float32 [batch, channels, height, width], as the preprocessing makes them")]
"""What the libraries call inputs."""


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`."""
    huggingface.require_exportable(trained.config.model, str(trained.run.path))
    require_whole_pictures(trained)
    if vision_export.knows(trained.config.model) and not pictures.says(found := exported_pixels(trained)):
        height, width = found.size
        what = f"of pictures of another shape than {height}x{width} the middle is taken, which preprocessing of "
        what += "transformers can only do to a square"
        hint = "--format timm and onnx can say it; or train with data.resize=stretch, or of equal sides"
        raise ConfigError(what, where=str(trained.run.path), hint=hint)


def require_whole_pictures(trained: TrainedRun) -> None:
    """Raises ConfigError where the model sees the middle of each picture, which neither library's files can say."""
    share = getattr(getattr(trained.config.recipe, "augment", None), "center_crop", 1.0)
    if share != 1:
        what = f"the model sees the middle of each picture (recipe.augment.center_crop={share:g}), and the files of "
        what += "transformers and timm cannot say that as it is done here"
        raise ConfigError(what, where=str(trained.run.path), hint="--format onnx and jax cut it out themselves")


def write(trained: TrainedRun, folder: Path) -> Exported:
    """See `formats.Exporter`."""
    require_new(folder)
    require(trained)
    checked = Checked(trained, reloaded.TRANSFORMERS)
    export_run(trained, folder, checked.finish)
    config = read_json(folder / "config.json")
    (name,) = config["architectures"]
    lines = huggingface.loading_lines(config, str(folder))
    return Exported(lines, {"what": name, "class": name, **checked.facts})


class Checked:
    """What is done to a folder for torch before it gets its name: it is read again, and completed.

    What the run's model gives is computed first, so that its weights, those that are written, and those that are read
    again are not in memory at once.

    Attributes:
        facts: see `Exported`; there once it is done.
    """

    def __init__(self, trained: TrainedRun, library: str):
        self.trained, self.library = trained, library
        self.facts: dict[str, object] = {}
        self._network = Network.of(trained)
        _ = self._network.expected

    def finish(self, folder: Path) -> None:
        """Raises RunError if the folder does not compute what the run does."""
        agreement = reloaded.require_same(self.trained, self._network, folder, self.library)
        runtime = self._runtime(folder)
        folders.complete(folder, self.trained, self._network, runtime, agreement)
        self.facts = {"difference": agreement.difference, "checked": str(agreement), "read_by": agreement.by}

    def _runtime(self, folder: Path) -> folders.Runtime:
        config, features = read_json(folder / "config.json"), self.trained.features
        if self.library == reloaded.TIMM:
            from bigctl.interop import timm_export

            lines, notes = timm_export.loading_lines(".", features.shape[2]), list[str]()
        else:
            lines = huggingface.loading_lines(config, ".")
            notes = huggingface.notes(config, features.tokenizer or {})
        takes = {"image": _PIXELS, "stream": _TOKENS[:1]}.get(features.kind, _TOKENS)
        about = f"`config.json` and `model.safetensors` are as {self.library} reads them."
        return folders.Runtime("", (), (), about, "\n".join(lines), notes, dict(takes))


def export_run(trained: TrainedRun, folder: Path, finish: Finish = as_it_is) -> Path:
    """Write the model of a run for `transformers`, see `huggingface.export_model`.

    Raises:
        ConfigError: if transformers has no such model, or the folder holds something already.
        RunError: if the folder cannot be written, or the run has lost its tokenizer.
    """
    run = trained.run
    huggingface.require_exportable(trained.config.model, str(run.path))
    if vision_export.knows(trained.config.model):
        return huggingface.write_vision(exported(trained), folder, finish)
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
        ),
        folder,
        finish,
    )


def exported_pixels(trained: TrainedRun) -> Pixels:
    """What its pictures are made into; grey ones become coloured ones for weights of such."""
    features, recipe = trained.features, trained.config.recipe
    mean, std = (tuple(getattr(recipe, name, None) or getattr(features, name)) for name in ("mean", "std"))
    resize = str(getattr(trained.config.data, "resize", pictures.STRETCH))
    return Pixels((features.shape[0], features.shape[1]), mean, std, resize)


def exported(trained: TrainedRun) -> vision_export.Export:
    """What is exported of a classifier of pictures."""
    features = trained.features
    values = {**flatten(trained.params), **flatten(trained.variables)}
    return vision_export.Export(
        model=trained.config.model,
        values={name: np.asarray(value, np.float32) for name, value in values.items()},
        pixels=exported_pixels(trained),
        classes=features.target.names,
        several=features.target.kind == CLASSES,
    )
