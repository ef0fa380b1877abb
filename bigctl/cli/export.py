"""Write a trained model as a folder that another library loads."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigctl import formatting
from bigctl.cli import common, render
from bigctl.cli.eval import step_argument
from bigctl.errors import ConfigError
from bigctl.inference.exporters.formats import FORMATS, Exported, Exporter, exporter, require_bits

if TYPE_CHECKING:
    from bigctl.inference.trained import TrainedRun

EXAMPLES = """\
examples:
  bigctl export runs/bert_cls --format hf
  bigctl export cnn_cls --format jax --out digits && python digits/run.py 7.png
  bigctl export bert_cls --format hf --out sentiment --step last
  bigctl export bert_cls --format onnx --int8 --out small
  bigctl export gpt_lm --format onnx --cache --int8
  bigctl export bert_cls --format hf --json
  bigctl export mlp_cls --format jax --encrypt --passphrase-file secret.txt --out sealed
  bigctl export sealed --decrypt --passphrase-file secret.txt --out opened

""" + "\n".join(f"{name}: {found.about}" for name, found in FORMATS.items())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run directory, or a name under runs/; with --decrypt an export")
    parser.add_argument("--format", choices=tuple(FORMATS), help="see below")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a new folder; default: RUN/FORMAT")
    small = parser.add_mutually_exclusive_group()
    rounds = " or ".join(name for name, found in FORMATS.items() if found.bits)
    for bits in (8, 4):
        what = f"weights of {bits} bits, with what that costs and gains; of --format {rounds}"
        small.add_argument(f"--int{bits}", dest="bits", action="store_const", const=bits, help=what)
    parser.add_argument(
        "--cache",
        action="store_true",
        help="keys and values of earlier tokens go in and out; of language models as onnx",
    )
    sealing = parser.add_mutually_exclusive_group()
    what = "write all files into one, under a passphrase (AES-256-GCM; pip install 'bigctl[encrypt]')"
    sealing.add_argument("--encrypt", action="store_true", help=what)
    sealing.add_argument("--decrypt", action="store_true", help="write the files of an encrypted export to --out")
    common.add_passphrase(parser)
    parser.add_argument("--step", default="best", help="checkpoint: best, last, or a step; default: best")
    common.add_run_plugins(parser)
    common.add_json(parser)


def run(options: argparse.Namespace) -> int:
    if options.decrypt:
        return _decrypt(options)
    step = step_argument(options.step)
    if options.format is None:
        raise ConfigError("no format is given", where="--format", hint=f"one of: {', '.join(FORMATS)}")
    found_exporter = exporter(options.format)
    asked: dict[str, Any] = {} if options.bits is None else {"bits": options.bits}
    if options.cache and options.format != "onnx":
        raise ConfigError(f"--format {options.format} has none", where="--cache", hint="--format onnx has")
    if options.bits is not None:
        require_bits(options.format, options.bits)
    secret = _passphrase(options)
    from bigctl.interop.folders import require_new
    from bigctl.runs import directory

    found = directory.locate(options.run)
    kinds = {"cache": options.cache, f"int{options.bits}": options.bits is not None, "encrypted": options.encrypt}
    name = "-".join([options.format, *(kind for kind, given in kinds.items() if given)])
    folder = options.out or found.path / name
    from bigctl.inference.trained import TrainedRun

    trained = TrainedRun.load(str(found.path), step=step, plugins=options.plugin)
    found_exporter.require(trained)
    if options.cache:
        from bigctl.inference.exporters import cached

        cached.require(trained)
        asked["cache"] = True
    require_new(folder)
    if (quantize := trained.config.train.quantize) is not None and options.bits is None:
        what = "train.quantize=%s: this file has the float32 weights; --format onnx --%s writes what it was tuned for"
        logging.getLogger("bigctl").warning(what, quantize, quantize)
    if options.bits is not None and (stored := rounded_otherwise(trained, options.bits)):
        what = "the run's weights are rounded already (%s), and once more here; export the run that it was made from"
        logging.getLogger("bigctl").warning(what, stored)
    if secret is None:
        exported = found_exporter.write(trained, folder, **asked)
    else:
        exported = _write_encrypted(found_exporter, trained, folder, secret, asked)
    if options.json:
        facts = {name: value for name, value in exported.facts.items() if name not in ("what", "lines")}
        report = {"run": str(found.path), "step": trained.step, "format": options.format, "folder": str(folder)}
        render.print_json({**report, **facts, "encrypted": options.encrypt, "files": _files(folder)})
    else:
        _print(f"{found.path}, step {trained.step:,}", folder, exported, options)
    return 0


def rounded_otherwise(trained: TrainedRun, bits: int) -> str | None:
    """What `bigctl compress` rounded the weights to, if rounding them for the export changes them once more."""
    from bigctl.interop import rounding

    made = trained.run.record().get("compression") or {}
    stored = made.get("method")
    if stored not in ("int8", "int4") or trained.run.static.is_file():
        return None
    return None if (stored, bits, made.get("group")) == ("int4", 4, rounding.GROUP) else str(stored)


def _passphrase(options: argparse.Namespace) -> str | None:
    """That to encrypt with; None where nothing is to be. Raises ConfigError."""
    if not options.encrypt:
        if options.passphrase_file is not None:
            raise ConfigError("there is nothing to encrypt or to open", where="--passphrase-file", hint="add --encrypt")
        return None
    from bigctl.inference.exporters import sealed

    return sealed.passphrase(options.passphrase_file, new=True)


def _write_encrypted(
    found_exporter: Exporter, trained: TrainedRun, folder: Path, secret: str, asked: dict[str, Any]
) -> Exported:
    from bigctl.files import disk_size
    from bigctl.inference.exporters import sealed

    size = 5 * disk_size(trained.run.checkpoints / f"{trained.step:09d}")
    with sealed.clear_folder(size) as clear:
        exported = found_exporter.write(trained, clear / "export", **asked)
        sealed.seal(clear / "export", folder, secret)
    return replace(exported, usage=[], facts={**exported.facts, "what": f"{exported.facts['what']}; encrypted"})


def _decrypt(options: argparse.Namespace) -> int:
    """Writes the files of an encrypted export. Raises ConfigError and RunError; nothing is left then."""
    from bigctl.inference.exporters import sealed
    from bigctl.interop.folders import require_new, whole_or_nothing

    folder = Path(options.run)
    if not sealed.is_sealed(folder):
        raise ConfigError(
            f"holds no {sealed.FILE}", where=str(folder), hint="give what `bigctl export --encrypt` wrote"
        )
    if options.out is None:
        raise ConfigError("no folder is given to write to", where="--decrypt", hint="add --out DIR")
    flags = {"--format": options.format, f"--int{options.bits}": options.bits, "--cache": options.cache}
    if given := [name for name, value in flags.items() if value]:
        raise ConfigError("an export that is opened stays what it is", where=given[0], hint="leave it out")
    require_new(options.out)
    secret = sealed.passphrase(options.passphrase_file)
    with whole_or_nothing(options.out) as partial:
        partial.chmod(0o700)
        sealed.unseal(folder, secret, partial)
    if options.json:
        render.print_json({"export": str(folder), "folder": str(options.out), "files": _files(options.out)})
        return 0
    print(f"{folder} -> {options.out}, in clear")
    _print_files(options.out)
    return 0


def _print(what: str, folder: Path, exported: Exported, options: argparse.Namespace) -> None:
    facts = exported.facts
    print(f"{what} -> {folder} ({facts['what']})")
    _print_files(folder)
    if "checked" in facts and options.bits is None:
        print(f"it computes what the run does: {facts['checked']}")
    if "text" in facts:
        print(f"it writes {facts['text']}")
    for line in facts.get("lines", []):
        print(f"  {line}")
    print("to use it:")
    if options.encrypt:
        lines = [f"bigctl serve {folder}"] if exported.served else []
        lines += [f"bigctl predict {folder} {exported.examples}"] if exported.examples else []
        lines = [f"{line} --passphrase-file FILE" for line in (*lines, f"bigctl export {folder} --decrypt --out DIR")]
    else:
        lines = [*exported.usage, *([f"bigctl predict {folder} {exported.examples}"] if exported.examples else [])]
    for line in lines:
        print(f"  {line}")


def _files(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def _print_files(folder: Path) -> None:
    for file in _files(folder):
        print(f"  {file:<24} {formatting.size((folder / file).stat().st_size):>10}")
