"""bigctl from Python: `compose`, `train`, `load`. The command line calls these."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.config import compose as composing
from bigctl.config.compose import Composed
from bigctl.config.schema import Config
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.inference.trained import TrainedRun
    from bigctl.runs.summary import Summary


def compose(
    overrides: Sequence[str] = (), *, config_dirs: Sequence[str | Path] = (), plugins: Sequence[str] = ()
) -> Config:
    """The typed configuration of an experiment.

    Args:
        overrides: as on the command line: `["recipe=cnn_cls", "optimizer.lr=1e-3"]`.
        config_dirs: folders with presets of your own.
        plugins: modules with components of your own.

    Raises:
        ConfigError: naming the key, where it comes from, and what to write instead.
    """
    if isinstance(overrides, str):
        raise ConfigError(f"{overrides!r} is one text", hint=f"give a list of overrides: [{overrides!r}]")
    return composing.compose(overrides, config_dirs=[Path(d) for d in config_dirs], plugins=plugins).config


def train(config: Config, run_dir: str | Path, *, resume: str = "auto", quiet: bool = False) -> Summary:
    """Train a configuration in a run directory; gives what `summary.json` holds. Resumes a run that is there.

    Raises:
        BigctlError: what went wrong; its `exit_code` is that of the command line.
    """
    from bigctl.engine.run import Options
    from bigctl.engine.trainer import train

    return train(Composed(config, (), {}), Path(run_dir), Options(resume=resume, quiet=quiet))


def load(run: str | Path, *, step: str | int = "best", plugins: Sequence[str] = ()) -> TrainedRun:
    """The model of a run, with `predict`, which takes arrays or a list of texts, and `evaluate`.

    Args:
        run: a run directory, or a name under runs/.
        step: "best", "last" or a number.
        plugins: modules with components of your own that the run was made with.

    Raises:
        RunError: if there is no such run or checkpoint, or it needs plugins that are not given.
    """
    from bigctl.inference.trained import TrainedRun

    return TrainedRun.load(str(run), step=step, plugins=plugins)
