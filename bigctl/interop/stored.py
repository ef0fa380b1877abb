"""Parameters as they are stored somewhere, whatever the format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

TORCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
"""What torch calls the parts of a normalisation -> what they are called here."""


class Stored(ABC):
    """Parameters under the paths of the model.

    Attributes:
        file: named in errors.
        shapes: of the parameters, by path.
    """

    file: Path
    shapes: dict[str, tuple[int, ...]]

    @abstractmethod
    def read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Some of the parameters, by path."""

    def read_variables(self, wanted: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
        """What a model updates by itself, such as batch statistics, by path, where it has the same shape."""
        return {}

    def unused(self, taken: Iterable[str]) -> list[str]:
        """Names, as the file has them, of what is not among the parameters taken."""
        used = set(taken)
        return [name for name in self.shapes if name not in used]
