"""`--format timm`: a trained ResNet, ViT or ConvNeXt as a folder that timm loads."""

from __future__ import annotations

from pathlib import Path

from bigctl.inference.exporters import huggingface, reloaded
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.trained import TrainedRun
from bigctl.interop import timm_export
from bigctl.interop.folders import require_new


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`."""
    timm_export.require(trained.config.model, str(trained.run.path))
    huggingface.require_whole_pictures(trained)


def write(trained: TrainedRun, folder: Path) -> Exported:
    """See `formats.Exporter`."""
    require_new(folder)
    require(trained)
    checked = huggingface.Checked(trained, reloaded.TIMM)
    timm_export.write(huggingface.exported(trained), folder, checked.finish)
    lines = timm_export.loading_lines(str(folder), trained.features.shape[2])
    return Exported(lines, {"what": "folder for timm", **checked.facts})
