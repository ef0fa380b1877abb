"""Let a language model go on from a prompt: text on stdout as it is written."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.terminal import unescaped

if TYPE_CHECKING:
    from bigctl.generation.generate import LanguageModel
    from bigctl.generation.options import GenerationOptions

EXAMPLES = """\
examples:
  bigctl generate runs/gpt_lm --prompt "In the beginning" --max-new-tokens 300
  bigctl generate gpt_lm --prompt "And he said" --temperature 0            the most likely text
  bigctl generate gpt_lm --prompt "And he said" --top-p 0.9 --num-samples 3 --seed 7 --json
  bigctl generate gpt_lm prompts.txt                                        one prompt a line
  bigctl generate smollm2 --prompt "The capital of France is"               packaged weights
  bigctl generate smollm2 --chat --prompt "What is a mesh of devices?"

A prompt may not be longer than the model's context (see --truncate); the text may: where the context is full, the model
goes on from the last half of it. A seed writes the same text on the same machine, however many others are written with
it.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="RUN|MODEL",
        help="a run directory, a name under runs/, a folder that `bigctl export` wrote (jax, hf, gguf), packaged "
        "weights (smollm2), a Hugging Face folder or ORG/NAME",
    )  # fmt: skip
    parser.add_argument(
        "files", nargs="*", metavar="FILE", default=[],
        help="prompts: a text file or - for standard input, one a line; .jsonl with the key prompt; in the encoding of "
        "the run's texts",
    )  # fmt: skip
    parser.add_argument("--prompt", action="append", default=[], metavar="STR", help="may be given repeatedly")
    parser.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="default: 200")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="T", help="0 for the most likely token; default: 0.8"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K most likely tokens")
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="only the likeliest tokens that together have probability P",
    )
    parser.add_argument(
        "--min-p", type=float, default=0.0, metavar="P", help="only tokens at least P times as likely as the likeliest"
    )
    parser.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1: tokens of the text become less likely",
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="STR", help="text that ends a sample; may be given repeatedly"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--num-samples", type=int, default=1, metavar="N", help="texts for each prompt; default: 1")
    parser.add_argument("--truncate", action="store_true", help="of a prompt longer than the context use the end")
    parser.add_argument("--chat", action="store_true", help="put each prompt into the model's chat template")
    parser.add_argument("--step", default="best", help="checkpoint of a run: best, last, or a step; default: best")
    common.add_passphrase(parser)
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    step = step_argument(options.step)
    from bigctl.runs import exports

    export = exports.find(options.model)
    secret = common.passphrase(options.passphrase_file, [str(export.path) if export else options.model])
    if not options.files and not options.prompt:
        options.files = [_standard_input(options.model)]
    blocks = _prompts(options)
    first = next(blocks)  # what is wrong with the prompts is said before a model is loaded, unless they are yet to come
    settings = _settings(options)
    from bigctl.inference import language_models

    model = language_models.load_language_model(options.model, step=step, plugins=options.plugin, passphrase=secret)
    if options.json:
        _print_json(options, model, settings, [prompt for block in (first, *blocks) for prompt in block])
        return 0
    several = options.num_samples > 1 or len(options.prompt) > 1 or bool(options.files)
    shown = 0
    for block in _chain(first, blocks):
        _print(model, settings, block, shown if several else None)
        shown += len(block)
    return 0


def _chain(first: list[str], others: Iterator[list[str]]) -> Iterator[list[str]]:
    yield first
    yield from others


def _settings(options: argparse.Namespace) -> GenerationOptions:
    """Raises ConfigError naming the flag of a number that is out of its range."""
    from bigctl.errors import ConfigError
    from bigctl.generation.options import GenerationOptions

    names = [name for name in GenerationOptions.__dataclass_fields__ if name != "stop"]
    try:
        return GenerationOptions(**{name: getattr(options, name) for name in names}, stop=tuple(options.stop))
    except ConfigError as error:
        error.where = "--" + (error.where or "").replace("_", "-")
        raise


# ---------------------------------------------------------------------------------------------------------- the prompts


def _standard_input(model: str) -> str:
    from bigctl.errors import ConfigError

    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "no prompt is given", hint=f'bigctl generate {model} --prompt "...", or FILE, or - to type one a line'
        )
    return "-"


def _prompts(options: argparse.Namespace) -> Iterator[list[str]]:
    """Prompts in the order of the command line, those of standard input as they arrive."""
    from bigctl.errors import ConfigError, DataError
    from bigctl.inference import read_lines
    from bigctl.runs import run_info

    if not all(options.prompt):
        raise ConfigError("the prompt is empty", where="--prompt", hint="give the model something to go on from")
    for file in options.files:
        if file != "-" and not Path(file).is_file():
            what = "is a folder" if Path(file).is_dir() else "there is no such file"
            raise DataError(what, where=file, hint='FILE holds prompts; a prompt itself: --prompt "..."')
    if options.prompt:
        yield list(options.prompt)
    encoding = run_info.encoding_of(options.model) if options.files else None
    for file in options.files:
        if file == "-":
            if sys.stdin is None:
                raise DataError("is closed", where="stdin")
            stdin = cast(read_lines.Stream, sys.stdin.buffer)
            yield from cast(Iterator[list[str]], read_lines.text_blocks(stdin, pairs=False, encoding=encoding))
        elif file.endswith(".jsonl"):
            yield _from_jsonl(Path(file), encoding)
        else:
            with Path(file).open("rb") as stream:
                named = cast(read_lines.Stream, stream)
                blocks = read_lines.text_blocks(named, pairs=False, name=file, encoding=encoding)
                yield [cast(str, text) for block in blocks for text in block]


def _from_jsonl(file: Path, encoding: str | None) -> list[str]:
    from bigctl.data.sources import content, read_table
    from bigctl.errors import DataError

    found = []
    hint = 'each line is an object like {"prompt": "In the beginning"}'
    text, name = content.read_text(file, encoding)
    for number, value in read_table.json_objects(text, name):
        prompt = value.get("prompt")
        if not isinstance(prompt, str) or not prompt:
            raise DataError("there is no prompt", where=f"{file}:{number}", hint=hint)
        found.append(prompt)
    if not found:
        raise DataError("there is no prompt", where=str(file), hint=hint)
    return found


# ------------------------------------------------------------------------------------------------------------ the texts


def _print(model: LanguageModel, settings: GenerationOptions, prompts: list[str], before: int | None) -> None:
    """Texts in their order, each as it is written when its turn has come; a chat's without its prompt.

    They are numbered after the `before` prompts that there were; None for a single text, which needs no number.
    """
    out = sys.stdout if sys.stdout.isatty() else unescaped(sys.stdout)  # a file gets the text as it is
    rows = iter([(prompt, sample) for prompt in range(len(prompts)) for sample in range(settings.num_samples)])
    row, begun = next(rows, None), False
    waiting: dict[tuple[int, int], str] = {}
    done: set[tuple[int, int]] = set()
    for piece in model.stream(prompts, settings):
        of = (piece.prompt, piece.sample)
        waiting[of] = waiting.get(of, "") + piece.text
        done |= {of} if piece.finish else set()
        while row in waiting:
            if not begun and before is not None:
                print(f"--- prompt {before + row[0] + 1}, sample {row[1] + 1}")
            if not begun and not settings.chat:
                print(prompts[row[0]], end="", file=out)
            print(waiting.pop(row), end="", flush=True, file=out)
            begun = row not in done
            if begun:
                break
            print(flush=True)
            row = next(rows, None)


def _print_json(
    options: argparse.Namespace, model: LanguageModel, settings: GenerationOptions, prompts: list[str]
) -> None:
    start = time.perf_counter()
    found = model.generate(prompts, settings)
    seconds = time.perf_counter() - start
    samples = [
        {"prompt": prompts[g.prompt], "sample": g.sample, "text": g.text, "tokens": g.tokens, "finish": g.finish}
        for g in found
    ]
    total = sum(g.tokens for g in found)
    report: dict[str, Any] = {"model": options.model, "step": model.step, "settings": vars(settings)}
    render.print_json({**report, "samples": samples, "seconds": seconds, "tokens_per_second": total / seconds})
