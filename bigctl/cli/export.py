"""Write a trained model as a folder that another library loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.cli.eval import step_argument

EXAMPLES = """\
examples:
  bigctl export runs/bert_cls --format hf
  bigctl export bert_cls --format hf --out sentiment --step last
  bigctl export bert_cls --format hf --json

hf: config.json, model.safetensors and tokenizer files, as Hugging Face transformers reads them (model=bert, gpt, llama)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/")
    parser.add_argument("--format", choices=("hf",), required=True, help="hf: Hugging Face transformers")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: RUN/hf")
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    from bigctl.interop import huggingface
    from bigctl.runs import directory

    found = directory.locate(options.run)
    folder = options.out or found.path / options.format
    huggingface.require_new(folder)
    from bigctl.inference.export import export_run
    from bigctl.inference.trained import TrainedRun
    from bigctl.interop.tensors import read_json

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    export_run(trained, folder)
    config = read_json(folder / "config.json")
    files = sorted(file.name for file in folder.iterdir())
    if options.json:
        report = {"run": str(found.path), "step": trained.step, "format": options.format, "folder": str(folder)}
        render.print_json({**report, "class": config["architectures"][0], "files": files})
        return 0
    print(f"{found.path}, step {trained.step:,} -> {folder} ({config['architectures'][0]})")
    for file in files:
        print(f"  {file:<24} {formatting.size((folder / file).stat().st_size):>10}")
    print("to load it:")
    for line in huggingface.loading_lines(config, str(folder)):
        print(f"  {line}")
    return 0
