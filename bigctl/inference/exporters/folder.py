"""What lies beside an exported model: labels, preprocessing, tokenizer, a script that uses it, a card, digests."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from typing import Any

from bigctl.data.dataset import Features
from bigctl.data.number_style import MISSING
from bigctl.data.target import NONE
from bigctl.data.text import ngrams
from bigctl.files import sha256
from bigctl.inference.compression.method import told
from bigctl.inference.exporters.agreement import Agreement
from bigctl.inference.exporters.formats import Exported
from bigctl.inference.exporters.network import Network
from bigctl.inference.exporters.settings_file import KEPT, SUMS, kept
from bigctl.inference.trained import TrainedRun
from bigctl.interop import sources
from bigctl.interop.folders import write_json
from bigctl.runs import generation_config, manifest
from bigctl.runs.directory import CARD, RunDirectory
from bigctl.runs.redaction import without_folders


@dataclass(frozen=True)
class Runtime:
    """What computes an exported model.

    Attributes:
        name: of the template of `run.py` that calls it.
        imports: lines of that script.
        packages: what it needs besides numpy.
        about: one sentence for the card.
        command: what uses the model where it takes no script of ours.
        notes: further paragraphs for the card.
        takes: inputs, and what each is, where the model has not those of the run; it then gives `logits`.
    """

    name: str
    imports: Sequence[str]
    packages: Sequence[str]
    about: str
    command: str = ""
    notes: Sequence[str] = ()
    takes: Mapping[str, str] = field(default_factory=dict)


def complete(
    folder: Path,
    trained: TrainedRun,
    network: Network,
    runtime: Runtime,
    agreement: Agreement,
    rounded: Sequence[str] = (),
) -> str:
    """Write everything beside the model into its folder; gives what `run.py` is called with.

    Args:
        folder: holds the model.
        trained: the run that it is of.
        network: the model.
        runtime: what computes it.
        agreement: how well it does.
        rounded: lines for the card, where weights are rounded: how, and what that costs and gains.
    """
    features = trained.features
    write_json(folder / "source.json", source(trained))
    write_json(folder / "labels.json", _labels(trained))
    write_json(folder / "preprocessing.json", _preprocessing(trained, outside=bool(runtime.takes)))
    write_json(folder / KEPT, kept(trained))
    if features.tokenizer is not None:
        shutil.copyfile(trained.run.tokenizer, folder / "tokenizer.json")
    if trained.run.generation.is_file():
        shutil.copyfile(trained.run.generation, folder / trained.run.generation.name)
    kind = _kind(features)
    argument, _, packages = _KINDS[kind]
    needs = ", ".join(["numpy", *runtime.packages, *packages])
    if not runtime.command:
        begin = "stream" if "inputs" in network.inputs and len(network.inputs) == 1 else "stream_cached"
        (folder / "run.py").write_text(_script(trained, runtime, kind, needs, begin), encoding="utf-8")
    digests = {file.name: sha256(file) for file in sorted(folder.iterdir()) if file.name != CARD}
    (folder / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()), encoding="utf-8")
    card = _card(trained, network, runtime, agreement, rounded, digests, argument, needs)
    (folder / CARD).write_text(card, encoding="utf-8")
    return argument


def exported(folder: Path, argument: str, trained: TrainedRun, facts: dict[str, Any], *, served: bool) -> Exported:
    """What was written, for people.

    Args:
        folder: of the export.
        argument: what `complete` gave.
        trained: the run.
        facts, served: see `Exported`.
    """
    text = "--text TEXT --text-pair TEXT" if trained.features.pairs else "--text TEXT"
    given = {"image": "PICTURE ...", "table": "FILE.csv", "text": text}.get(trained.features.kind)
    labels = given is not None and trained.config.recipe.purpose == "predict"
    return Exported([f"python {folder / 'run.py'} {argument}"], facts, given if labels and given else "", served)


def _script(trained: TrainedRun, runtime: Runtime, kind: str, needs: str, writes: str) -> str:
    argument, imports, _ = _KINDS[kind]
    script = [
        _template("begin").format(
            argument=argument, needs=needs, imports="".join(f"{line}\n" for line in (*imports, *runtime.imports))
        ),
        _template(f"runtime_{runtime.name}"),
    ]
    if kind == "stream":
        script += [_template(writes)]
    else:
        known = (
            trained.features.target.kind if kind != "arrays" and trained.config.recipe.purpose == "predict" else None
        )
        target = known if known is not None else NONE if kind == "text" else "other"
        script += [_template(f"inputs_{kind}"), _template(f"show_{target}")]
    return "\n".join(script)


def source(trained: TrainedRun) -> dict[str, Any]:
    """What a model was made from: the run, the step, and the digest of the checkpoint's list of files."""
    listed = trained.run.checkpoints / f"{trained.step:09d}" / manifest.MANIFEST
    return {
        "derived_from": trained.run.path.name,
        "step": trained.step,
        "checkpoint": {manifest.MANIFEST: sha256(listed)},
    }


_TOKENIZERS = (("from tokenizers import Tokenizer",), ("tokenizers",))
_KINDS: dict[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "image": ("PICTURE ...", ("from PIL import Image",), ("pillow",)),
    "table": ("FILE.csv", ("import csv",), ()),
    "text": ("TEXT ...", *_TOKENIZERS),
    "stream": ("PROMPT [COUNT]", *_TOKENIZERS),
    "arrays": ("INPUTS.npz", (), ()),
}
"""By kind of input: what `run.py` is called with, what it imports, and the packages that this takes."""


def _kind(features: Features) -> str:
    plain = features.kind != "table" or features.encoder is not None
    counted = (features.tokenizer or {}).get("type") == ngrams.TYPE
    return features.kind if features.kind in _KINDS and plain and not counted else "arrays"


def _template(name: str) -> str:
    return files("bigctl.inference.exporters").joinpath("templates", f"{name}.txt").read_text(encoding="utf-8")


def _labels(trained: TrainedRun) -> dict[str, Any]:
    target, decided = trained.features.target, trained.task.decision()
    positive = trained.positive
    return {
        "target": target.kind,
        "names": list(target.names),
        "positive": target.names.index(positive) if positive is not None else None,
        "threshold": decided,
        "temperature": trained.confidence.temperature if trained.confidence is not None else None,
        "origin": target.origin,
    }


def _preprocessing(trained: TrainedRun, *, outside: bool) -> dict[str, Any]:
    """What becomes of an example before the model sees it; what is inside the model is not told again, `outside` says
    that pictures are standardised there."""
    features, data, recipe = trained.features, trained.config.data, trained.config.recipe
    found: dict[str, Any] = {"kind": features.kind, "shape": list(features.shape)}
    if features.kind == "image":
        height, width, channels = features.shape
        found |= {"height": height, "width": width, "channels": channels}
        return found | {
            "background": str(getattr(data, "background", "black")),
            "resize": str(getattr(data, "resize", "stretch")),
            "mean": list(getattr(recipe, "mean", None) or features.mean),
            "std": list(getattr(recipe, "std", None) or features.std),
            "standardised": "by who uses it, in [0, 1]" if outside else "inside the model, which takes uint8",
        }
    if features.kind == "table":
        missing = {*MISSING, *(str(text).strip().lower() for text in getattr(data, "missing", ()))}
        columns = (features.encoder or {}).get("columns", [])
        separator = {"tsv": "\t"}.get(data.kind, ",")
        return found | {"columns": columns, "missing": sorted(missing), "separator": separator}
    if features.kind == "stream":
        known = features.tokenizer or {}
        (context,) = trained.task.exported_inputs(1)["inputs"].shape[1:]
        ends = generation_config.read_generation_config(trained.run, known).ends
        model = trained.language_model
        told = {"start": list(model.start), "never": list(model.never), "vocab": model.vocab}
        return found | {"context": context, "ends": list(ends), **told}
    return found | dict(features.tokenizer or {}) | {"pairs": features.pairs}


# --------------------------------------------------------------------------------------------------------- model card


def _card(
    trained: TrainedRun,
    network: Network,
    runtime: Runtime,
    agreement: Agreement,
    rounded: Sequence[str],
    digests: Mapping[str, str],
    argument: str,
    needs: str,
) -> str:
    run, record = trained.run, trained.run.record()
    shapes = {name: f"{shape.dtype} {list(map(str, shape.shape))}" for name, shape in network.inputs.items()}
    listed = [f"| `{name}` | {what} |" for name, what in (runtime.takes or shapes).items()]
    given = "\n".join(listed).replace("'", "")
    gives = "`logits`" if runtime.takes else ", ".join(f"`{name}`" for name in network.expected[0])
    plugins = record.get("plugins") or []
    compared = _compared(agreement, rounded)
    used = f"pip install {needs.replace(',', '')}\npython run.py {argument}"
    lines = [
        f"# {run.path.name}",
        f"A model of `recipe={trained.config.recipe.kind} model={trained.config.model.kind}`, step {trained.step:,}, "
        f"exported by bigctl {metadata.version('bigctl')}. {runtime.about}",
        f"```\n{runtime.command or used}\n```",
        *runtime.notes,
        f"| input | |\n|---|---|\n{given}\n\nIt gives {gives}.",
        compared,
        "## Data\n\n" + _data(record),
        "## Metrics\n\n" + _metrics(trained),
        "## Weights\n\n" + _weights(trained),
        f"## Made with\n\n```\n{_made_with(run, record)}\n```",
        "## Digests\n\n" + "\n".join(f"- `{name}` sha256 {digest}" for name, digest in digests.items()),
    ]
    if plugins:
        names = ", ".join(f"`{name}`" for name in plugins)
        told = "what they do to data before the model sees it is not done here."
        said = f"The run used plugins ({names}), whose code is not in this folder: {told}"
        lines.insert(lines.index(compared) + 1, said)
    return "\n\n".join(lines) + "\n"


def _made_with(run: RunDirectory, record: Mapping[str, Any]) -> str:
    """The commands: a run that was compressed has the training of the one that it was made of."""
    overrides = run.overrides.read_text(encoding="utf-8").split("\n") if run.overrides.is_file() else []
    command = without_folders(" ".join(["bigctl train", *(each for each in overrides if each)]))
    if settings := record.get("compression"):
        origin = (record.get("derived_from") or {}).get("derived_from", "RUN")
        compressed = without_folders(f"bigctl compress {origin} {told(settings)}")
        return f"{command} --name {origin}\n{compressed} --name {run.path.name}"
    return command


def _compared(agreement: Agreement, rounded: Sequence[str]) -> str:
    if not rounded:
        return f"Compared with the run it was made from: {agreement}."
    told = "\n".join(f"- {line}" for line in rounded)
    before = f"Before its weights were rounded it computed what the run does: {agreement}."
    return f"{before}\n\n## Rounded weights\n\n{told}"


def _data(record: Mapping[str, Any]) -> str:
    data = record.get("data") or {}
    info = data.get("info") or {}
    said = {name: info[name] for name in ("title", "source", "licence") if info.get(name)}
    said["fingerprint"] = data.get("fingerprint")
    return "\n".join(f"- {name}: {value}" for name, value in said.items() if value)


def _metrics(trained: TrainedRun) -> str:
    run = trained.run
    metrics = run.summary().get("metrics", {}) if run.summary_file.is_file() else {}
    plain = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if not plain:
        return "The run has not finished: there are none of the test split."
    views = trained.config.eval.tta
    seen = (
        f", on the views of `eval.tta={views}`; this model answers by each picture as it is" if views != "none" else ""
    )
    return f"Of the run's last evaluation and test split{seen}:\n\n" + "\n".join(
        f"- `{name}`: {value:.6g}" for name, value in plain.items()
    )


def _weights(trained: TrainedRun) -> str:
    begun = trained.config.model.init_from
    if begun is None:
        return "Trained from random numbers."
    licence = sources.LICENCES.get(begun)
    return f"Training began with `{without_folders(begun)}`" + (
        f" ({licence})." if licence else ", whose licence bigctl does not know."
    )
