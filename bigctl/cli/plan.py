"""What a step would cost on a machine that may not be here: memory, operations, messages, time. Trains nothing."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from bigctl.cli import common, render

if TYPE_CHECKING:
    from bigctl.config.schema import Config

EXAMPLES = """\
examples:
  bigctl plan recipe=gpt_lm --target cpu:8
  bigctl plan recipe=gpt_lm model=gpt2 mesh=fsdp train.precision=bfloat16 --target h100:8
  bigctl plan recipe=gpt_lm model=gpt2 mesh=fsdp train.batch_size=256 --target v5e-4x4
  bigctl plan recipe=gpt_lm mesh=fsdp --target h100:8x2 --json
  bigctl plan recipe=gpt_lm model=gpt2 --target h100:8 --search
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
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    from bigctl.planning import devices

    devices.prepare_environment()
    config = common.composed(options).config
    from bigctl.engine import plan as planning
    from bigctl.engine import plan_text

    if options.search:
        return _search(options, config)
    found = planning.plan(config, planning.target_of(options.target))
    if options.json:
        render.print_json(found.to_json())
    else:
        plan_text.show(found.to_json())
    return 0


def _search(options: argparse.Namespace, config: Config) -> int:
    from bigctl.engine import plan as planning
    from bigctl.engine import plan_search

    target = planning.target_of(options.target)
    tried = plan_search.search(config, target, lambda point: print(f"plan: {point}", file=sys.stderr, flush=True))
    if options.json:
        render.print_json({"target": target.text, "tried": [each.to_json() for each in tried]})
    else:
        print("\n".join(plan_search.lines(tried)))
    return 0
