"""bigctl: a config-driven experiment command line for JAX. The command line is a thin skin over what is here."""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` takes longer to import than all else here
if TYPE_CHECKING:
    from typing import Any

__version__ = "0.1.0"

_checkout = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if os.path.exists(os.path.join(_checkout, "conf", "config.yaml")) and os.path.isdir(os.path.join(_checkout, "recipes")):
    __path__.append(_checkout)  # a checkout keeps conf/ and recipes/ beside this package, a wheel inside it

if TYPE_CHECKING:
    from bigctl.api import baseline, compose, load, load_export, train
    from bigctl.errors import BigctlError

__all__ = ["BigctlError", "__version__", "baseline", "compose", "load", "load_export", "train"]


def __dir__() -> list[str]:
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    if name in ("baseline", "compose", "load", "load_export", "train"):  # late, so that `import bigctl` stays instant
        from bigctl import api

        return getattr(api, name)
    if name == "BigctlError":
        from bigctl.errors import BigctlError

        return BigctlError
    raise AttributeError(f"module 'bigctl' has no attribute {name!r}")
