"""`--format gguf`: a Llama or a GPT-2 as one file for llama.cpp, with its tokenizer in it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from bigctl.config import schema
from bigctl.data.text.ngrams import Ngrams
from bigctl.errors import ConfigError, RunError
from bigctl.inference.exporters import beside
from bigctl.inference.exporters import folder as folders
from bigctl.inference.exporters.agreement import require_agreement
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.exporters.network import Computed, Network
from bigctl.inference.text_batches import run_tokenizer
from bigctl.inference.trained import TrainedRun
from bigctl.interop import gguf_export
from bigctl.interop.folders import require_new, whole_or_nothing
from bigctl.interop.gguf import StoredGguf
from bigctl.models.architecture import DecoderArchitecture, decoder_architecture
from bigctl.runs import generation_config
from bigctl.training.checkpoints.arrays import flatten

MODEL = "model.gguf"
USE = f'llama-cli -m {MODEL} -no-cnv -n 64 --temp 0 -p "PROMPT"'


def require(trained: TrainedRun) -> None:
    """See `formats.Exporter`."""
    where = str(trained.run.path)
    gguf_export.model_kind(_architecture(trained), where)
    if not trained.run.tokenizer.is_file():
        raise RunError("the run has lost its tokenizer.json", where=where)
    gguf_export.split_of(gguf_export.read_tokenizer_file(trained.run.tokenizer), where)


def write(trained: TrainedRun, folder: Path, bits: int | None = None) -> Exported:
    """See `formats.Exporter`: matrices are float16, or with `bits` 8 or 4 Q8_0 or Q4_0.

    The same tensors are first written as float32 and read again by our own reader, which must give the run's logits;
    then so is the file itself, whose loss is told beside that of the run.
    """
    require_new(folder)
    require(trained)
    kind, where = gguf_export.KINDS[bits], str(trained.run.path)
    network, export = Network.of(trained), _export(trained)
    with whole_or_nothing(folder) as partial:
        exact, file = partial / "exact.gguf", partial / MODEL
        gguf_export.write(export, exact, "F32", where)
        agreement = require_agreement(network, loaded(network, exact), MODEL)
        _require_same_tokens(trained, network, exact)
        exact.unlink()
        written = gguf_export.write(export, file, kind, where)
        found = beside.compare(trained, network, network.copy(network.weights), loaded(network, file), where, sizes=())
        lines = [f"{kind}, {written}", *found.lines]
        about = f"`{MODEL}` is GGUF for llama.cpp, matrices as {kind}, with the tokenizer in it."
        folders.complete(partial, trained, network, folders.Runtime("", (), (), about, USE), agreement, lines)
    facts = {"what": f"GGUF, {kind}", "difference": agreement.difference, "checked": str(agreement), "lines": lines}
    return Exported(
        [f"cd {folder} && {USE}"], {**facts, "rounded": {**found.to_json(), **asdict(written), "kind": kind}}
    )


def loaded(network: Network, file: Path) -> Computed:
    """The model with the weights of a file, as our own reader reads it."""
    weights, stored = dict(network.weights), StoredGguf(file)
    for name in [name for name in weights if name in stored.shapes]:
        values, padded = stored.read([name])[name], np.zeros_like(weights[name])
        padded[tuple(map(slice, values.shape))] = values
        weights[name] = padded
    return network.copy(weights)


def _architecture(trained: TrainedRun) -> DecoderArchitecture:
    model = trained.config.model
    if trained.features.kind != "stream" or not isinstance(model, schema.Decoder):
        what = f"llama.cpp has no place for recipe={trained.config.recipe.kind} model={model.kind}"
        raise ConfigError(what, where=str(trained.run.path), hint="--format gguf is for gpt and llama of recipe=gpt_lm")
    return decoder_architecture(model, (trained.features.tokenizer or {})["vocab_size"])


def _export(trained: TrainedRun) -> gguf_export.GgufExport:
    found = generation_config.read_generation_config(trained.run, trained.features.tokenizer or {})
    return gguf_export.GgufExport(
        model=_architecture(trained),
        params={name: np.asarray(values, np.float32) for name, values in flatten(trained.params).items()},
        tokenizer=gguf_export.read_tokenizer_file(trained.run.tokenizer),
        special=found.special,
        ends=found.ends,
        chat_template=found.chat_template,
        name=trained.run.path.name,
    )


def _require_same_tokens(trained: TrainedRun, network: Network, file: Path) -> None:
    """Raises RunError if the file's tokenizer cuts texts of the validation split otherwise than the run's."""
    ours, theirs = run_tokenizer(trained.run, trained.features), StoredGguf(file).tokenizer()
    assert not isinstance(ours, Ngrams)  # which are no text
    for batch in network.batches:
        for row in batch["inputs"]:
            text = ours.decode(row.tolist(), skip_special_tokens=False)
            if ours.encode(text, add_special_tokens=False).ids != theirs.encode(text, add_special_tokens=False).ids:
                hint = "nothing was written; this is a mistake in bigctl: please report it"
                raise RunError(f"the tokenizer cuts {text[:40]!r} otherwise than the run's", where=MODEL, hint=hint)
