"""What data decides about federated training: who the clients are, what they have, and what a round counts for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bigctl.config.schema import Config
from bigctl.data import clients, column_values
from bigctl.data.dataset import Dataset
from bigctl.data.layouts import masked, rounds
from bigctl.data.target import CLASS, NUMBER
from bigctl.errors import ConfigError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from bigctl.training.programs import Programs

WHERE = "train.federated"


def settled(config: Config, dataset: Dataset) -> tuple[Config, Dataset]:
    """The configuration with its number of clients, and what a round counts for as `train.batch_size`; and the data
    with whose each training example is. Both as they are where nothing is federated. Free of jax.

    Raises:
        ConfigError: where these data cannot be shared out so.
    """
    if not config.train.federated.on:
        return config, dataset
    if dataset.layout is None or dataset.layout.kind not in masked.KINDS:
        what = "examples that are read while training, or cut out of one text, are no client's"
        raise ConfigError(what, where=WHERE, hint="use images, tables or texts in memory; data.decoding=memory")
    law, count = law_of(config, dataset), dataset.size("train")
    owners = owners_of(config, dataset, "train", law)
    keys = dataclasses.replace(config.train.federated, clients=law.clients)
    settled = dataclasses.replace(config.train, federated=keys)
    draw = rounds.draw_of(settled)
    size = max(1, round(keys.epochs * draw.wanted * count / draw.clients))
    config = dataclasses.replace(config, train=dataclasses.replace(settled, batch_size=size))
    train = {**dataset.splits["train"], rounds.OWNER: owners}
    return config, dataclasses.replace(dataset, splits={**dataset.splits, "train": train})


def law_of(config: Config, dataset: Dataset) -> clients.Law:
    """Who has which examples.

    Raises:
        ConfigError: where these data cannot be shared out so.
    """
    keys, count, seed = config.train.federated, dataset.size("train"), config.data.split_seed
    if keys.column is not None:
        values = np.unique(_column(config, dataset, "train"))
        if keys.clients is not None and keys.clients != len(values):
            what = f"{keys.column} has {len(values):,} values in the training split, which are the clients"
            raise ConfigError(what, where=f"{WHERE}.clients", hint=f"leave it out, or give {len(values)}")
        return clients.ByColumn(values)
    assert keys.clients is not None
    parts = keys.clients * (keys.shards if keys.split == "shards" else 1)
    if parts > count:
        what = f"{keys.clients:,} clients"
        what += f" of {keys.shards:,} shards" if keys.split == "shards" else ""
        raise ConfigError(
            f"{what} are more than the {count:,} training examples", where=f"{WHERE}.clients",
            hint=f"{WHERE}.clients={max(1, count * keys.clients // parts)} or less",
        )  # fmt: skip
    if keys.split == "iid":
        return clients.ByChance(keys.clients, seed)
    target = dataset.features.target
    if target.kind != CLASS and (target.kind != NUMBER or keys.split == "dirichlet"):
        what = f"{WHERE}.split={keys.split} goes by the class of an example, and these have not one each"
        raise ConfigError(what, where=f"{WHERE}.split", hint=f"{WHERE}.split=iid")
    if keys.split == "shards":
        return clients.ByShards(keys.clients, keys.shards, seed)
    counts = np.bincount(dataset.splits["train"]["label"], minlength=len(target.names))
    return clients.ByDirichlet(keys.clients, keys.alpha, counts / count, seed)


def owners_of(config: Config, dataset: Dataset, split: str, law: clients.Law) -> np.ndarray:
    """The client of each example of a split, int32 [N]; `clients.NOBODY` where it is no client's."""
    if isinstance(law, clients.ByColumn):
        return law.owners(_column(config, dataset, split))
    if isinstance(law, clients.ByChance):
        return law.owners(np.empty(dataset.size(split)))
    return law.owners(np.asarray(dataset.splits[split]["label"]))


def _column(config: Config, dataset: Dataset, split: str) -> np.ndarray:
    """The values of the column that tells clients apart, as texts [N]; an empty one where it is missing."""
    name, where = config.train.federated.column, f"{WHERE}.column"
    assert name is not None
    values = column_values.read(config.data, dataset, split, name, where=where)
    if values is None:
        raise column_values.unknown(dataset, name, where=where)
    if values.dtype.kind == "f":
        return np.array(["" if np.isnan(value) else f"{value:.9g}" for value in values.tolist()])
    return np.array(["" if value is None else str(value) for value in values.tolist()])


def require_one_device(config: Config, mesh: Mesh) -> None:
    """Raises ConfigError where a mesh would share the clients out."""
    if config.train.federated.on and mesh.size > 1:
        axes = ", ".join(f"{name}={size}" for name, size in dict(mesh.shape).items() if size > 1)
        what = f"clients are trained one after the other on one device, and the mesh has {mesh.size} ({axes})"
        raise ConfigError(what, where="mesh", hint="mesh=single; train.federated.at_once computes several side by side")


def require_no_statistics(config: Config, programs: Programs) -> None:
    """Raises ConfigError where the model keeps what is not trained: what a client has of it would be lost."""
    import jax

    if config.train.federated.on and jax.tree.leaves(programs.abstract_state.variables):
        what = f"model={config.model.kind} keeps statistics of batches, whose average over clients is not defined"
        raise ConfigError(what, where=WHERE, hint="choose a model without, such as model=cnn")


def announcement(config: Config, dataset: Dataset, overrides: Sequence[str] = ()) -> Iterator[str]:
    """Who takes part and what they have, as sentences, and which of the `overrides` that were given do nothing."""
    keys = config.train.federated
    if not keys.on:
        if keys != type(keys)():
            yield f"note: nothing is federated: {WHERE}.clients is not given, and its other keys do nothing"
        return
    draw, owners = rounds.draw_of(config.train), dataset.splits["train"][rounds.OWNER]
    sizes = np.bincount(owners, minlength=draw.clients)
    size = "one batch of all" if keys.batch_size is None else f"batches of {keys.batch_size}"
    about = "about " if draw.chance else ""
    times = "once" if keys.epochs == 1 else f"{keys.epochs} times"
    yield (
        f"federated: a step is a round of {about}{draw.wanted:,} of {draw.clients:,} clients, each {times} over its "
        f"examples in {size}; they have {_span(sizes)} examples"
    )
    yield from (f"note: {WHERE}.{found}" for found in keys.idle)
    if any(each.startswith("train.batch_size=") for each in overrides):
        yield f"note: train.batch_size follows from what clients have, {WHERE}.batch_size is that of their steps"
    names = dataset.features.target.names
    if dataset.features.target.kind != CLASS or config.recipe.purpose != "predict":
        return  # classes that the data has are none that is learned
    found = classes_of(owners, dataset.splits["train"]["label"], draw.clients, len(names)) > 0
    if lacking := int((~found.all(1)).sum()):
        yield f"note: {lacking:,} clients lack a class: they have {_span(found.sum(1))} of {len(names)}"


def classes_of(owners: np.ndarray, labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """Examples of each client by class, int [clients, classes]."""
    known = owners >= 0
    places = owners[known].astype(np.int64) * classes + np.asarray(labels)[known]
    return np.bincount(places, minlength=count * classes).reshape(count, classes)


def _span(values: np.ndarray) -> str:
    low, high = int(values.min()), int(values.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
