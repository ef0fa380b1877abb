"""Stage 2, resolve: what the data and the weights of `model.init_from` decide. Free of jax.

Whatever is wrong with either is found here, before the seconds that jax takes to start. `init_from` is located, the
data prepared and the cadence computed once a start; later stages take them from `Resolved`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from bigctl.config import cadence, schema
from bigctl.config.cadence import Cadence
from bigctl.config.schema import Config, Data
from bigctl.data.dataset import Dataset
from bigctl.data.files.remote import is_place, is_remote
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.layouts.packed import Packed
from bigctl.data.preparation import prepare
from bigctl.data.sources import listing
from bigctl.data.text import tokenization
from bigctl.engine import federated, privacy
from bigctl.errors import ConfigError, DataError
from bigctl.files import expanded
from bigctl.runs.directory import RunDirectory
from bigctl.terminal import escaped

if TYPE_CHECKING:
    from bigctl.interop.pictures import Pixels
    from bigctl.interop.sources import Source


_UNMEASURED = 64
"""By which the lengths of batches of texts are chosen while no size has been measured."""


@dataclass(frozen=True)
class Resolved:
    """A configuration without open ends.

    Attributes:
        config: the architecture is that of the pretrained weights, the schedule has its horizon.
        source: what `model.init_from` names; None without one, and where a resumed run does not need it.
        dataset: the data, prepared.
        cadence: when things happen in training.
    """

    config: Config
    source: Source | None
    dataset: Dataset
    cadence: Cadence


def resolve(config: Config, stored: Path | None = None) -> Resolved:
    """Resolve a configuration; `stored` is the tokenizer.json that a run has already.

    Raises:
        ConfigError, DataError: where data or weights cannot be found or read, or do not fit the configuration.
    """
    source = locate_weights(config)
    config = with_architecture(config, source)
    return with_data(config, prepare_data(config, stored, source), source)


def locate_weights(config: Config) -> Source | None:
    """What `model.init_from` names; what is on the hub is fetched."""
    if config.model.init_from is None:
        return None
    from bigctl.interop import sources

    return sources.locate_source(config.model.init_from)


def with_architecture(config: Config, source: Source | None) -> Config:
    """The configuration with the architecture that its pretrained weights have, and the pictures that they are for."""
    if source is not None:
        from bigctl.interop import sources

        config = dataclasses.replace(config, model=sources.fill_architecture(config.model, source))
    return _with_pictures(config, None if source is None else source.pixels)


def _with_pictures(config: Config, pixels: Pixels | None) -> Config:
    """The configuration with the size and the numbers of pictures, as far as it leaves them open."""
    recipe, data = config.recipe, config.data
    if not isinstance(recipe, schema.ImageCls):
        return config
    if pixels is not None and recipe.mean is None:
        recipe = dataclasses.replace(recipe, mean=list(pixels.mean), std=list(pixels.std))
    if isinstance(data, schema.Pictures) or (isinstance(data, schema.Parquet) and data.image is not None):
        size = data.image_size or _size(data, recipe.size, pixels, fixed=config.model.fixed_size)
        decided = pixels is not None or size != data.image_size
        channels = data.channels or (None if pixels is None else len(pixels.mean))
        # Squeezed pictures are none that weights have seen, unless they say so: of other shapes the middle is taken.
        usual = "crop" if pixels is None else pixels.resize
        resize = usual if decided and data.resize == "auto" else data.resize
        data = dataclasses.replace(data, image_size=size, channels=channels, resize=resize)
    return dataclasses.replace(config, recipe=recipe, data=data)


def _size(
    data: schema.Pictures | schema.Parquet, side: int | None, pixels: Pixels | None, *, fixed: bool
) -> list[int] | None:
    """Height and width of pictures that no `data.image_size` is given for."""
    if pixels is not None and (side is None or fixed):
        return list(pixels.size)
    if side is None:
        return None
    ratio = listing.common_ratio(data.path) if isinstance(data, schema.ImageFolder) else 1.0
    return [round(side * max(ratio, 1)), round(side * max(1 / ratio, 1))]


def with_data(
    config: Config, dataset: Dataset, source: Source | None = None, done: cadence.Done | None = None
) -> Resolved:
    """What these data decide: when things happen, and where the schedule ends; `done` of a run that is resumed."""
    dataset = privacy.planted(config, dataset)
    if config.recipe.whole_batch:
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=dataset.size("train")))
    config, dataset = federated.settled(config, dataset)
    config = with_packing(config, schema.can_pack(config))
    when = cadence.resolve_cadence(config, dataset.size("train"), done)
    schedule = dataclasses.replace(config.schedule, horizon=config.schedule.horizon or when.total)
    config = dataclasses.replace(config, schedule=schedule, data=_decided(config.data, dataset))
    config = privacy.settled(config, dataset, when.total, rates_differ=done is not None)
    return Resolved(config, source, dataset, when)


def with_packing(config: Config, pack: bool) -> Config:
    """The configuration with whether texts share rows, if it leaves that open."""
    bucketing = getattr(config.recipe, "bucketing", None)
    if not isinstance(bucketing, schema.Packing) or bucketing.pack is not None:
        return config
    recipe, bucketing = cast(schema.BertCls, config.recipe), dataclasses.replace(bucketing, pack=pack)
    return dataclasses.replace(config, recipe=dataclasses.replace(recipe, bucketing=bucketing))


def _decided(data: Data, dataset: Dataset) -> Data:
    """The data's configuration with how its pictures are decoded and resized, if it leaves that open."""
    found: dict[str, Any] = {}
    if dataset.features.kind == "image" and getattr(data, "decoding", schema.DECODE_MEMORY) is None:
        found["decoding"] = schema.DECODE_STREAM if dataset.streamed else schema.DECODE_MEMORY
    if getattr(data, "resize", "stretch") == "auto":
        found["resize"] = "stretch"
    return dataclasses.replace(data, **found) if found else data


def data_of(config: Config) -> Data:
    """The data's configuration; random parts of pictures are drawn of encoded ones, however few there are."""
    options, open_ended = batch_options(config), getattr(config.data, "decoding", schema.DECODE_MEMORY) is None
    if not options.least or not open_ended:
        return config.data
    streamed: dict[str, Any] = {"decoding": schema.DECODE_STREAM}
    return dataclasses.replace(config.data, **streamed)


def prepare_data(config: Config, stored: Path | None = None, source: Source | None = None) -> Dataset:
    """The data of an experiment, texts as tokens.

    Args:
        config: with its architecture.
        stored: the tokenizer.json that a run has already.
        source: what `model.init_from` names, if that has been located before.
    """
    tokenizer, options = tokenizer_spec(config, stored, source), batch_options(config)
    dataset = prepare.prepare(
        data_of(config), regression=config.is_regression, tokenizer=tokenizer, stored=stored, batches=options
    )
    if options.documents and dataset.features.kind == "stream" and dataset.batches.kind != Packed.kind:
        what = f"data={config.data.kind} comes in windows across documents only"
        raise ConfigError(what, where="recipe.packing", hint="leave out recipe.packing=documents")
    return dataset


@contextlib.contextmanager
def from_its_folder(run: RunDirectory, config: Config) -> Iterator[None]:
    """Around what reads the data of a run that is there: where that is missing because paths are relative to another
    folder than this one, or it was moved, the error says so."""
    try:
        yield
    except DataError as error:
        given = [(key, value) for key, _, value in schema.walk_config(config) if key.startswith("data.")]
        keys = [key for key, value in given if _is_elsewhere(key.rpartition(".")[2], value)]
        if not keys:
            raise
        absolute = Path(str(dict(given)[keys[0]])).is_absolute()
        hint = (
            "it was there when training began: bring it back"
            if absolute
            else f"{_are(keys)} relative to {_origin(run)}: run this there"
        )
        hint += f", or say where it is now: bigctl resume {run.path} {keys[0]}=..."
        raise DataError(error.message, where=error.where, hint=hint) from error


def _are(keys: Sequence[str]) -> str:
    return f"{' and '.join(keys)} {'is' if len(keys) == 1 else 'are'}"


def _origin(run: RunDirectory) -> str:
    begun = next((start["folder"] for start in run.record().get("starts") or () if start.get("folder")), None)
    return "the folder in which training began" + (f", {escaped(begun)}" if begun else "")


def _is_elsewhere(name: str, value: object) -> bool:
    """Whether a key of data is a path that is not here and may be elsewhere; of a pattern, the folders before it."""
    if not is_place(name) or not isinstance(value, str) or not value or is_remote(value):
        return False
    plain = itertools.takewhile(lambda part: not glob.has_magic(part) and "{" not in part, expanded(value).parts)
    found = Path(*plain)
    return found != Path() and not found.exists()


def batch_options(config: Config) -> BatchOptions:
    """What an experiment says about batches."""
    size = _UNMEASURED if config.train.measures_batch_size else config.train.batch_size
    options = BatchOptions(config.block or 0, size)
    augment = getattr(config.recipe, "augment", None)
    if augment is not None:
        least, threads = augment.random_resized_crop, getattr(config.data, "decoding_threads", None)
        options = dataclasses.replace(options, least=least, threads=threads)
        options = dataclasses.replace(options, alternating=augment.alternates, repeats=augment.repeats)
    if (packing := getattr(config.recipe, "packing", None)) is not None:
        options = dataclasses.replace(options, packing=packing, end_token=getattr(config.recipe, "end_token", None))
    bucketing = getattr(config.recipe, "bucketing", None)
    if bucketing is None:
        return options
    return dataclasses.replace(options, shapes=bucketing.shapes, window=bucketing.window)


def tokenizer_spec(
    config: Config, stored: Path | None = None, source: Source | None = None
) -> tokenization.Spec | None:
    """The tokenizer of an experiment's recipe, None without one; arguments as for `prepare_data`."""
    settings = config.tokenizer
    if settings is None:
        return None
    if stored is not None and stored.is_file() and settings.type in ("pretrained", "file"):
        return tokenization.Spec(settings, stored)
    if settings.type == "pretrained" and (source := source or locate_weights(config)) is not None:
        if source.tokenizer is None:
            raise ConfigError(
                f"{source.name} has no tokenizer",
                where="model.init_from",
                hint="give recipe.tokenizer.type=file recipe.tokenizer.path=...",
            )
        return tokenization.spec(settings, (source.tokenizer, source.lowercase))
    return tokenization.spec(settings)
