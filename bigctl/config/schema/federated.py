"""Keys of federated training: who has which examples, what a client does in a round, what the server makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigctl.config.schema.base import FREE, STRUCTURAL, Problem, Whole, idle, key

SPLITS = ("iid", "shards", "dirichlet")
COMPRESSIONS = ("none", "topk", "int8")
SERVERS = ("avg", "momentum", "adagrad", "adam", "yogi")


@dataclass
class Federated:
    """Clients train on their own examples, a server averages what they learn (FedAvg, McMahan et al. 2017), all in one
    process. A step of the run is a round; `optimizer` is that of the clients."""

    clients: int | None = key(
        None, "Clients that the training split is shared out among; null for no such training.", drift=STRUCTURAL,
        decided=True, ge=1,
    )  # fmt: skip
    split: str = key(
        "iid", "Who has which examples: at random (iid), a few classes each (shards), or class shares by a Dirichlet "
        "law (dirichlet).", drift=STRUCTURAL, choices=SPLITS,
    )  # fmt: skip
    shards: int = key(2, "Of split=shards, parts of one class, more or less, that a client has.", drift=STRUCTURAL,
                      ge=1)  # fmt: skip
    alpha: float = key(
        1.0, "Of split=dirichlet, how alike clients are: 0.1 hardly, 100 nearly all (Hsu et al. 2019).",
        drift=STRUCTURAL, gt=0,
    )  # fmt: skip
    column: str | None = key(
        None, "A column of the data that tells instead: a client for each of its values.", drift=STRUCTURAL
    )
    fraction: float = key(0.1, "Of the clients, those of a round.", drift=STRUCTURAL, gt=0, le=1)
    dropout: float = key(0.0, "Probability that a client of a round sends nothing back.", ge=0, lt=1)
    epochs: int = key(1, "What a client does in a round [passes over its examples].", drift=STRUCTURAL, ge=1)
    batch_size: int | None = key(10, "Of a client's steps; null for all that it has [examples].", ge=1)
    mu: float = key(0.0, "Pull of a client's weights towards the server's (FedProx, Li et al. 2020); 0 for FedAvg.",
                    ge=0)  # fmt: skip
    weights: str = key("examples", "What a client counts in the average.", choices=("examples", "equal"))
    server: str = key(
        "avg", "What becomes of the average: it is added (avg), with momentum (FedAvgM), or scaled as FedAdagrad, "
        "FedAdam and FedYogi do (Reddi et al. 2021).", drift=STRUCTURAL, choices=SERVERS,
    )  # fmt: skip
    server_lr: float = key(1.0, "What the server multiplies its update by.", gt=0)
    server_momentum: float = key(0.9, "Of all servers but avg.", ge=0, lt=1)
    server_beta2: float = key(0.99, "Of adam and yogi, decay of the average of squares.", ge=0, lt=1)
    server_tau: float = key(1e-3, "Of adagrad, adam and yogi, what is added to the root.", gt=0)
    compress: str = key(
        "none", "What a client sends: all of its update, its largest numbers (topk), or 8 bits a number (int8).",
        choices=COMPRESSIONS,
    )  # fmt: skip
    keep: float = key(0.05, "Of topk, the share of numbers that is sent.", gt=0, le=1)
    at_once: int = key(
        1, "Clients computed side by side; they take memory and change nothing but rounding.", drift=FREE, ge=1
    )

    @property
    def on(self) -> bool:
        return self.clients is not None or self.column is not None

    @property
    def idle(self) -> list[str]:
        """Keys that are set and do nothing beside the others, see `idle`."""
        split = self.split if self.column is None else ""
        adaptive = self.server in SERVERS[2:]
        uses = {
            "shards": (split == "shards", "split=shards"), "alpha": (split == "dirichlet", "split=dirichlet"),
            "keep": (self.compress == "topk", "compress=topk"),
            "server_momentum": (self.server != "avg", "servers other than avg"),
            "server_beta2": (self.server in ("adam", "yogi"), "server=adam and yogi"),
            "server_tau": (adaptive, "server=adagrad, adam and yogi"),
        }  # fmt: skip
        return idle(self, uses)

    def problems(self, config: Whole) -> Iterator[Problem]:
        """What of these keys does not go together, with each other or the rest of an experiment."""
        where = "train.federated"
        if not self.on:
            return
        if self.split != SPLITS[0] and self.column is not None:
            what = f"{where}.split={self.split} and {where}.column={self.column} both say who has which examples"
            yield f"{where}.split", what, "give one of them"
        for dotted, what, remedy in self._refused(config):
            yield dotted, f"{what}, which {where}.clients does not allow", remedy

    def _refused(self, config: Whole) -> Iterator[Problem]:
        recipe, model, train = config.recipe, config.model, config.train
        if getattr(model, "norm", "none") == "batch":
            what = "batch normalisation keeps statistics, whose average over clients is not defined"
            yield "model.norm", what, "model.norm=layer, or model.norm=none"
        if recipe.inputs in ("streams", "") or recipe.whole_batch:
            what = f"recipe={recipe.kind} has no examples that could be a client's"
            if recipe.whole_batch:
                what = f"recipe={recipe.kind} solves for all examples in one place"
            yield "recipe.kind", what, "use a recipe of images, tables or texts with labels"
        if getattr(recipe, "head", "new") != "new":
            what = f"recipe.head={recipe.head} solves for the head on all examples in one place"
            yield "recipe.head", what, "recipe.head=new"
        if model.whitens:
            what = f"model={model.kind} begins with statistics of all images"
            yield "model.kind", what, "use model=cnn"
        augment = getattr(recipe, "augment", None)
        for name in ("mixup", "cutmix") if augment is not None else ():
            if getattr(augment, name):
                what = f"{name} mixes examples of a batch, padding among them"
                yield f"recipe.augment.{name}", what, f"leave out recipe.augment.{name}"
        if augment is not None and (augment.repeats != 1 or augment.alternates):
            what = "what is in a batch, or mirrored, is planned over all examples"
            which, off = ("repeats", "1") if augment.repeats != 1 else ("flip", "none")
            yield f"recipe.augment.{which}", what, f"recipe.augment.{which}={off}"
        if (teacher := getattr(config, "distil", None)) is not None and teacher.teacher is not None:
            yield "distil.teacher", "a teacher sees the examples of all clients", "leave out distil.teacher"
        if train.accumulate > 1:
            what = f"train.accumulate={train.accumulate} cuts a batch of the server, which has none"
            yield "train.accumulate", what, "leave it out; a smaller train.federated.batch_size saves memory"
        if train.overfit_one_batch:
            yield "train.overfit_one_batch", "training is on one batch for ever", "leave out train.overfit_one_batch"
        if train.measures_batch_size:
            what = "train.batch_size follows from what clients have, and is not measured"
            yield "train.batch_size", what, "leave it out; clients have train.federated.batch_size"
        if train.privacy.on and train.privacy.unit == "example":
            what = "train.privacy promises something of each example, by gradients that the server does not see"
            yield "train.privacy.unit", what, "train.privacy.unit=client"
        if train.privacy.on and self.weights != "equal":
            what = f"train.privacy bounds what a client adds, and by weights={self.weights} some count for many"
            yield "train.federated.weights", what, "train.federated.weights=equal"
