"""Keys of training with differential privacy: what is promised, and what it is reached by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigctl.config.schema.base import FREE, STRUCTURAL, Problem, Whole, key


def noise_of_count(expected: float) -> float:
    """What is added to a count among so many, for `Privacy.quantile`: a twentieth, as Andrew et al. 2021 recommend."""
    return expected / 20


@dataclass
class Privacy:
    """DP-SGD (Abadi et al. 2016): the gradient of each example is clipped, and noise is added to their sum."""

    epsilon: float | None = key(
        None, "Budget of the whole training, for which the noise is solved; null for no promise, or what noise gives.",
        drift=STRUCTURAL, gt=0, le=1000,
    )  # fmt: skip
    noise: float | None = key(
        None, "Standard deviation of the noise, in units of clip; null to solve for it by epsilon.",
        drift=STRUCTURAL, decided=True, gt=0, le=1000,
    )  # fmt: skip
    delta: float = key(
        1e-5, "Probability that the promise may fail by; it should be well below 1 / training examples.",
        drift=STRUCTURAL, ge=1e-10, lt=1,
    )  # fmt: skip
    clip: float = key(
        1.0, "Largest norm of the gradient of an example, or of the update of a client; longer ones are scaled down.",
        drift=STRUCTURAL, gt=0,
    )  # fmt: skip
    quantile: float | None = key(
        None, "Adapts clip, from where it begins: this share of the norms comes to lie below it, 0.5 for the median "
        "(Andrew et al. 2021); null to keep it.", drift=STRUCTURAL, gt=0, lt=1,
    )  # fmt: skip
    quantile_rate: float = key(0.2, "How fast that goes.", drift=STRUCTURAL, gt=0, le=10)
    unit: str = key(
        "example", "Whom the promise is about: each example; or each client of train.federated, with all that it has "
        "(McMahan et al. 2018).", drift=STRUCTURAL, choices=("example", "client"),
    )  # fmt: skip
    per_layer: bool = key(False, "Clip the gradient of each layer by itself, at clip / sqrt(layers).", drift=STRUCTURAL)
    microbatch: int = key(
        64, "Of unit=example, those whose gradients are in memory at once; they change nothing but rounding.", ge=1
    )
    accountant: str = key(
        "pld", "Distribution of the privacy loss, tight (pld), or Renyi divergences, an upper bound (rdp).", drift=FREE,
        choices=("pld", "rdp"),
    )  # fmt: skip

    canaries: int = key(
        0, "Training examples that get a wrong label, half of which are left out by chance: bigctl audit tells by them "
        "what the model gives away.", drift=STRUCTURAL, ge=0,
    )  # fmt: skip

    @property
    def on(self) -> bool:
        return self.epsilon is not None or self.noise is not None

    @property
    def adapts(self) -> bool:
        return self.on and self.quantile is not None

    def noise_of_sums(self, expected: float) -> float | None:
        """Of `noise`, in units of clip, what is added to sums of so many: where clip adapts the count of those below it
        takes its part, and both together are as private as a sum alone. None where nothing is left for the sums."""
        if self.noise is None or not self.adapts:
            return self.noise
        left = self.noise**-2 - (2 * noise_of_count(expected)) ** -2
        return left**-0.5 if left > 0 else None

    def problems(self, config: Whole) -> Iterator[Problem]:
        """What of these keys does not go together with the rest of an experiment."""
        if self.canaries:
            yield from self._without_canaries(config)
        if not self.on:
            return
        name = "train.privacy.epsilon" if self.epsilon is not None else "train.privacy.noise"
        for dotted, what, remedy in self._refused(config):
            yield dotted, f"{what}, which {name} does not allow", remedy
        if self.unit == "client" and not config.train.federated.on:
            what = "train.privacy.unit=client is about clients, and there are none"
            yield "train.privacy.unit", what, "give train.federated.clients, or leave train.privacy.unit out"
        if self.adapts and self.per_layer:
            what = "train.privacy.quantile is of the norm of all layers together"
            yield "train.privacy.per_layer", what, "leave out train.privacy.per_layer"
        if config.train.accumulate > 1:
            what = f"train.accumulate={config.train.accumulate} does nothing where gradients are taken by microbatches"
            yield "train.accumulate", what, "leave it out; train.privacy.microbatch saves memory"

    def _without_canaries(self, config: Whole) -> Iterator[Problem]:
        where, remedy = "train.privacy.canaries", "leave out train.privacy.canaries"
        if config.train.federated.on:
            yield where, "canaries are of training examples, and the clients of train.federated have these", remedy
        if config.recipe.whole_batch or config.recipe.purpose != "predict":
            yield (
                where,
                f"recipe={config.recipe.kind} is not trained on examples with a label each, step by step",
                remedy,
            )
        if (teacher := getattr(config, "distil", None)) is not None and teacher.teacher is not None:
            yield where, "a teacher says what the labels are, and canaries need their own", remedy

    def _refused(self, config: Whole) -> Iterator[Problem]:
        recipe, model, train = config.recipe, config.model, config.train
        if getattr(model, "norm", "none") == "batch":
            what = "batch normalisation makes the gradient of an example depend on others"
            yield "model.norm", what, "model.norm=layer, or model.norm=none"
        if recipe.inputs in ("streams", "") or recipe.whole_batch:
            what = f"recipe={recipe.kind} has no examples of one person or record each"
            if recipe.whole_batch:
                what = f"recipe={recipe.kind} solves for all examples at once"
            yield "recipe.kind", what, "use a recipe of images, tables or texts with labels"
        yield from self._refused_of_images(config)
        if train.adversarial.eps and self.unit == "example":
            yield "train.adversarial.eps", "training is against attacks", "leave out train.adversarial.eps"
        if (teacher := getattr(config, "distil", None)) is not None and teacher.teacher is not None:
            what = "a teacher that has seen the examples without noise gives them away"
            yield "distil.teacher", what, "leave out distil.teacher"
        if getattr(recipe, "class_weights", "none") == "balanced":
            what = "balanced weights are counted from the labels"
            yield "recipe.class_weights", what, "give the weights as a list of numbers"
        if train.divergence.policy != "stop":
            what = f"train.divergence.policy={train.divergence.policy} looks at gradients without noise"
            yield "train.divergence.policy", what, "train.divergence.policy=stop"
        if train.overfit_one_batch:
            yield "train.overfit_one_batch", "training is on one batch for ever", "leave out train.overfit_one_batch"
        if train.measures_batch_size:
            what = "the batch size decides how much noise there is and is not measured"
            yield "train.batch_size", what, "give train.batch_size as a number of examples"

    def _refused_of_images(self, config: Whole) -> Iterator[Problem]:
        recipe = config.recipe
        augment = getattr(recipe, "augment", None)
        if config.model.whitens:
            what = f"model={config.model.kind} begins with statistics of the images"
            yield "model.kind", what, "use model=cnn"
        if augment is not None and augment.mixes:
            name = "mixup" if augment.mixup else "cutmix"
            what = f"{name} puts several examples into one"
            yield f"recipe.augment.{name}", what, f"leave out recipe.augment.{name}"
        if augment is not None and augment.repeats != 1:
            what = "a batch holds examples several times"
            yield "recipe.augment.repeats", what, "recipe.augment.repeats=1"
        if augment is not None and (augment.alternates or augment.random_resized_crop):
            what = "what is done to an image depends on when it was last drawn"
            which, off = ("flip", "none") if augment.alternates else ("random_resized_crop", "0")
            yield f"recipe.augment.{which}", what, f"recipe.augment.{which}={off}"
        if augment is not None and augment.erase and augment.erase_fill != "black":
            what = "erased boxes are filled by statistics of the training split"
            yield "recipe.augment.erase_fill", what, "recipe.augment.erase_fill=black"
        if getattr(recipe, "head", "new") == "probe":
            yield "recipe.head", "recipe.head=probe solves for the head without noise", "recipe.head=new"
