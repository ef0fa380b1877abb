"""Whether a folder for transformers or timm, read again before it gets its name, computes what its run does.

It is read by that library where it and torch are installed, in a process of its own, else by the reader that
`model.init_from` names such a folder to.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bigctl.config import schema
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import BigctlError, RunError
from bigctl.inference import read_back
from bigctl.inference.exporters.agreement import TOLERANCE, Agreement, difference, require_agreement
from bigctl.inference.exporters.network import Computed, Network, computed_by
from bigctl.inference.exporters.torch_process import ASKED, INPUTS, LACKING, LOGITS, SAID
from bigctl.inference.text_batches import run_tokenizer
from bigctl.inference.trained import TrainedRun
from bigctl.interop import bert, huggingface, pictures
from bigctl.interop.folders import write_json
from bigctl.interop.tensors import read_json
from bigctl.models.architecture import decoder_architecture

TRANSFORMERS, TIMM = "transformers", "timm"
CHECK = ".check"
"""Folder inside of the export that is written; it is gone before the export gets its name."""
PATIENCE = 1800
"""Seconds that the other process may take."""
_HINT = "nothing was written; this is a mistake in bigctl, or a library of another make: please report it"
log = logging.getLogger("bigctl")


def require_same(trained: TrainedRun, network: Network, folder: Path, library: str) -> Agreement:
    """How well a folder agrees with the run that it was made of, on validation rows.

    Args:
        trained: the run.
        network: its model.
        folder: as it was written, without what lies beside the model.
        library: `TRANSFORMERS` or `TIMM`.

    Raises:
        RunError: if it cannot be read, or a logit differs; it names the first tensor that is another, where one is.
    """
    lacking = [name for name in (library, "torch") if importlib.util.find_spec(name) is None]
    why = f"{' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not installed"
    if not lacking:
        check = folder / CHECK
        try:
            found = _asked(trained, network, folder, check, library)
            if not isinstance(found, str):
                return found
            why = found
            log.warning("%s: the folder is compared by bigctl's own reader instead", why)
        finally:
            shutil.rmtree(check, ignore_errors=True)
    by = f"bigctl's own reader, as {why}"
    run, _ = read_again(trained, folder)
    return require_agreement(network, run, folder.name, lambda batch: begins(trained, network, folder), by)


# ---------------------------------------------------------------------------------------------------------- a library


def _asked(trained: TrainedRun, network: Network, folder: Path, check: Path, library: str) -> Agreement | str:
    """As `require_same`, by the library; a sentence where that cannot be asked."""
    check.mkdir()
    for number, batch in enumerate(network.batches):
        np.savez(check / INPUTS.format(number), **batch)  # type: ignore[arg-type]
    write_json(check / ASKED, _question(trained, network, folder, library))
    path = os.pathsep.join(each for each in sys.path if each)
    own = {"HF_HOME": str(check), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", "-m", "bigctl.inference.exporters.torch_process", str(check)]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
            env={**os.environ, **own, "PYTHONPATH": path},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{library} has not answered within {PATIENCE // 60} minutes"
    if ended.returncode == LACKING:
        return f"{library} or torch cannot be imported, or lacks what it needs"
    if ended.returncode:
        return f"the process with {library} ended with {ended.returncode}"
    said = read_json(check / SAID)
    if wrong := said["wrong"]:
        raise RunError(f"{said['by']} {' '.join(wrong.split())}", where=folder.name, hint=_HINT)
    (name, *_), logits = network.expected[0], iter(_logits(check, len(network.batches)))
    return require_agreement(
        network, lambda _: {name: next(logits)}, folder.name, lambda _: begins(trained, network, folder), said["by"]
    )


def _logits(check: Path, batches: int) -> Iterator[np.ndarray]:
    return (np.load(check / LOGITS.format(number)) for number in range(batches))


def _question(trained: TrainedRun, network: Network, folder: Path, library: str) -> dict[str, Any]:
    config, kind = read_json(folder / "config.json"), trained.features.kind
    asked = {"folder": str(folder), "library": library, "batches": len(network.batches), "kind": kind}
    if library == TRANSFORMERS:
        asked |= {"class": huggingface.auto_class(config), "own_code": "auto_map" in config}
    if kind != "image":
        return {**asked, "texts": list(_texts(trained, network))}
    processor = read_json(folder / "preprocessor_config.json") if library == TRANSFORMERS else {}
    told = pictures.read(config, processor)
    assert told is not None  # we have just written it
    return {**asked, "channels": len(told.mean), "mean": told.mean, "std": told.std}


def _texts(trained: TrainedRun, network: Network) -> Iterator[tuple[str, list[int]]]:
    """Texts of the batches, and the tokens that the run's tokenizer cuts them into."""
    tokenizer = run_tokenizer(trained.run, trained.features)
    assert not isinstance(tokenizer, Ngrams)  # for which these libraries have no model
    for batch in network.batches:
        lengths = batch.get("lengths", np.full(len(batch["inputs"]), batch["inputs"].shape[1]))
        for row, length in zip(batch["inputs"], lengths, strict=True):
            text = tokenizer.decode(row[:length].tolist(), skip_special_tokens=True)
            yield text, tokenizer.encode(text, add_special_tokens=False).ids


# ------------------------------------------------------------------------------------------------------ our own reader


def read_again(trained: TrainedRun, folder: Path) -> tuple[Computed, dict[str, np.ndarray]]:
    """The model that a folder describes, as `model.init_from` reads it, and its weights by path.

    Raises:
        RunError: if it cannot be read, or lacks a tensor.
    """
    train = dataclasses.replace(trained.config.train, precision="float32", quantize=None)
    config = dataclasses.replace(trained.config, train=train)
    try:
        programs, found = read_back.by_path(folder, config, trained.features)
    except BigctlError as error:
        raise RunError(f"cannot be read again: {error.message}", where=folder.name, hint=_HINT) from error
    return Computed(computed_by(programs)[1], found, {}), found


def begins(trained: TrainedRun, network: Network, folder: Path) -> str | None:
    """The first tensor of a folder that is another than that of the run."""
    try:
        _, found = read_again(trained, folder)
    except BigctlError as error:
        return f"where it {error.message}"
    wanted, found = _comparable(trained, network.weights), _comparable(trained, found)
    for name, values in wanted.items():
        if name in found and (off := difference(values, found[name])) > TOLERANCE:
            return f"at {name}, off by {off:.2g}"
    return "beyond the tensors, which are those of the run"


def _comparable(trained: TrainedRun, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Weights as files have them: LoRA merged, the place of a class token added to it, a vocabulary not padded."""
    model = trained.config.model
    lora = getattr(model, "lora", None)
    scale = lora.alpha / lora.rank if lora is not None and lora.rank else 0.0
    found = bert.merge_lora(weights, scale)
    if "cls" in found and "position" in found:
        table = found["position"]
        found |= {"cls": found["cls"] + table[:1], "position": table[1:]}
    if isinstance(model, schema.Decoder):
        vocab = decoder_architecture(model, (trained.features.tokenizer or {})["vocab_size"]).vocab
        found["token/embedding"] = found["token/embedding"][:vocab]
        if "head/kernel" in found:
            found["head/kernel"] = found["head/kernel"][:, :vocab]
    return found
