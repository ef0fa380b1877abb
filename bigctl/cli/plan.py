"""What a step would cost on a machine that may not be here: memory, operations, messages, time. Trains nothing."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bigctl.cli import common, render
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from bigctl.config.schema import Config

EXAMPLES = """\
examples:
  bigctl plan recipe=gpt_lm --target cpu:8
  bigctl plan recipe=gpt_lm model=gpt2 mesh=fsdp train.precision=bfloat16 --target h100:8
  bigctl plan recipe=gpt_lm model=gpt2 mesh=fsdp train.batch_size=256 --target v5e-4x4
  bigctl plan recipe=gpt_lm mesh=fsdp --target h100:8x2 --json
  bigctl plan recipe=gpt_lm model=gpt2 --target h100:8 --search
  bigctl plan recipe=cnn_cls --target cpu:8 --html plan.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_overrides(parser)
    parser.add_argument(
        "--target", default="cpu:1", metavar="MACHINE",
        help="h100:8, h100:8x2 (GPUs a host x hosts), a100:8, v5e-16 or v5e-4x4, v5p-8x16x16, v6e-256:slices=2, cpu:8",
    )  # fmt: skip
    parser.add_argument(
        "--search",
        action="store_true",
        help="also compile other meshes, batch sizes, remat, and rank them by examples/s",
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with pictures of it")
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.planning import devices

    if options.html and not options.html.absolute().parent.is_dir():
        raise ConfigError(f"{options.html} cannot be written: there is no such folder", where="--html")
    devices.prepare_environment()
    config = common.composed(options).config
    from bigctl.engine import plan as planning
    from bigctl.engine import plan_text

    if options.search:
        return _search(options, config)
    found = planning.plan(config, planning.target_of(options.target)).to_json()
    if options.html:
        from bigctl.reports import plan as pages

        _write(options, pages.plan_page(found, _command(options)))
    if options.json:
        render.print_json(found)
    else:
        plan_text.show(found)
    return 0


def _search(options: argparse.Namespace, config: Config) -> int:
    from bigctl.engine import plan as planning
    from bigctl.engine import plan_search

    target = planning.target_of(options.target)
    tried = plan_search.search(config, target, lambda point: print(f"plan: {point}", file=sys.stderr, flush=True))
    told = [each.to_json() for each in tried]
    if options.html:
        from bigctl.reports import plan as pages

        _write(options, pages.search_page(target.text, told, _command(options)))
    if options.json:
        render.print_json({"target": target.text, "tried": told})
    else:
        print("\n".join(plan_search.lines(tried)))
    return 0


def _write(options: argparse.Namespace, page: str) -> None:
    from bigctl.files import write_text

    try:
        write_text(options.html, page)
    except OSError as error:
        raise ConfigError(f"{options.html} cannot be written: {error.strerror or error}", where="--html") from error


def _command(options: argparse.Namespace) -> str:
    asked = ["--target", options.target, *(["--search"] if options.search else [])]
    return shlex.join(["bigctl", "plan", *options.overrides, *common.source_flags(options), *asked])
