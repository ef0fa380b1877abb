"""Resume a run with its own config.yaml: from its last checkpoint, or from the beginning if it has none."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from bigctl.cli import common, training

if TYPE_CHECKING:
    from bigctl.config.compose import Composed
    from bigctl.runs.directory import RunDirectory

EXAMPLES = """\
examples:
  bigctl resume runs/cnn_cls
  bigctl resume cnn_cls train.epochs=20             make it longer
  bigctl resume cnn_cls train.max_minutes=50        stop in time, with exit code 75
  bigctl resume mine --plugin my_package.models     a run with components of your own
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys that may differ, or see --allow-drift")
    common.add_run_plugins(parser)
    training.add_flags(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.runs import directory

    if options.elastic:
        from bigctl.cli import elastic

        found = directory.locate(options.run)
        if (code := elastic.run(options, _compose(options, found).config, found.path)) is not None:
            return code
    with training.session(options) as session:
        found = directory.locate(options.run)
        composed = _compose(options, found)
        how = session.options(found.path, resume="must")
        from bigctl.engine import trainer

        session.end(trainer.train(composed, found.path, how))
    return session.exit_code


def _compose(options: argparse.Namespace, found: RunDirectory) -> Composed:
    """The configuration of the run, with what is given anew; plugins are loaded that the user names."""
    from bigctl.config import compose, plugins

    record = found.record()
    options.plugin = plugins.load_for_run(record.get("plugins"), options.plugin, where=str(found.path))
    config = compose.from_yaml(found.read_config(), where=str(found.config))
    before = [str(override) for override in record.get("overrides") or []]
    changed = compose.change(config, options.overrides) if options.overrides else config
    return compose.Composed(changed, (*before, *options.overrides), {})
