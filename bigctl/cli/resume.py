"""Resume a run with its own config.yaml: from its last checkpoint, or from the beginning if it has none."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bigctl.cli import training

if TYPE_CHECKING:
    from bigctl.config.compose import Composed
    from bigctl.runs.directory import RunDirectory

EXAMPLES = """\
examples:
  bigctl resume runs/cnn_cls
  bigctl resume cnn_cls train.epochs=20             make it longer
  bigctl resume cnn_cls train.max_minutes=50        stop in time, with exit code 75
  bigctl resume mine --plugin my_package.models     a component that is not where it was
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that may differ, or see --allow-drift")
    parser.add_argument(
        "--plugin", action="append", default=[], metavar="MODULE", help="module with components that the run needs"
    )
    training.add_flags(parser)


def run(options: argparse.Namespace) -> int:
    with training.session(options) as session:
        from bigctl.runs import directory

        found = directory.locate(options.run)
        composed = _compose(options, found)
        how = session.options(found.path, resume="must")
        from bigctl.engine import trainer

        session.end(trainer.train(composed, found.path, how))
    return session.exit_code


def _compose(options: argparse.Namespace, found: RunDirectory) -> Composed:
    """The configuration of the run, with what is given anew; its plugins are loaded."""
    from bigctl.config import compose, plugins
    from bigctl.errors import RunError

    record = found.record()
    needed = [str(name) for name in record.get("plugins") or []]
    lost = plugins.missing(needed)
    if lost and not options.plugin:
        raise RunError(
            f"was made with plugins that are not installed here: {', '.join(lost)}",
            where=str(found.path),
            hint="install them, run from the folder that holds them, or name what stands for them: --plugin MODULE",
        )
    options.plugin = list(dict.fromkeys([*(name for name in needed if name not in lost), *options.plugin]))
    plugins.load(options.plugin)
    config = compose.from_yaml(found.read_config(), where=str(found.config))
    before = [str(override) for override in record.get("overrides") or []]
    changed = compose.change(config, options.overrides) if options.overrides else config
    return compose.Composed(changed, (*before, *options.overrides), {})
