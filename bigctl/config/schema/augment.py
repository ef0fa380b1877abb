"""Keys of augmentation: how training images are changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from bigctl.config.schema.base import Problem, Whole, idle, key

RANDAUGMENT, TRIVIALAUGMENT = "randaugment", "trivialaugment"
BLACK, MEAN, NOISE = "black", "mean", "noise"
_EVEN = "make train.batch_size / train.accumulate even, and of several examples"


@dataclass
class Augment:
    """Random changes of training images, drawn for every example and step, composed in the order listed here."""

    random_resized_crop: float = key(
        0.0, "Smallest share of a picture's area that training sees of it, a part of 3/4 to 4/3 of its shape, resized; "
        "0.08 is usual for photographs, 0 is for all of it. Of pictures decoded while training, drawn before that.",
        ge=0, le=1,
    )  # fmt: skip
    rotate: float = key(0.0, "Largest rotation either way [degrees].", ge=0)
    scale: float = key(0.0, "Largest relative change of size, 0.1 for 0.9 to 1.1.", ge=0, lt=1)
    shift: float = key(0.0, "Largest shift along each axis [fraction of the image].", ge=0)
    elastic: float = key(
        0.0, "Typical move of a pixel along each axis by a smooth random warp [fraction of the side].",
        ge=0,
    )  # fmt: skip
    flip: str = key(
        "none", "Mirror half of the images: drawn anew each time, or (alternating) left to right, each image in every "
        "other epoch; auto is alternating for images of colour, none for grey ones, as of digits and letters.",
        choices=("none", "horizontal", "vertical", "both", "alternating", "auto"),
    )  # fmt: skip
    crop: int = key(0, "Pad by this many pixels, then crop back at random [pixels].", ge=0)
    border: str = key("black", "What images are padded with for that: nothing (black), or what is inside, mirrored.",
                      choices=("black", "reflect"))  # fmt: skip
    brightness: float = key(0.0, "Largest relative change of brightness, 0.4 for 0.6 to 1.4.", ge=0)
    contrast: float = key(0.0, "Largest relative change of contrast, towards or away from the mean grey.", ge=0)
    saturation: float = key(0.0, "Largest relative change of saturation, towards or away from grey.", ge=0)
    hue: float = key(0.0, "Largest turn of the hues either way [fraction of the circle].", ge=0, le=0.5)
    policy: str = key(
        "none", "Changes picked at random from a list of 14: randaugment, or trivialaugment, one of any strength.",
        choices=("none", RANDAUGMENT, TRIVIALAUGMENT),
    )  # fmt: skip
    operations: int = key(2, "How many changes RandAugment picks, one after the other.", ge=1, le=8)
    magnitude: float = key(9.0, "Strength of RandAugment's changes, of 30.", ge=0, le=30)
    erase: float = key(0.0, "How often a box of the image is erased [probability].", ge=0, le=1)
    erase_area: float = key(0.33, "Largest share of the image that is erased; the smallest is 0.02.", gt=0.02, lt=1)
    erase_fill: str = key(
        BLACK, "What is in its place: black, the mean colour of the training split, or normal noise with its mean and "
        "standard deviation.", choices=(BLACK, MEAN, NOISE),
    )  # fmt: skip
    mixup: float = key(0.0, "Mix an image with its neighbour in the batch by a share from Beta(mixup, mixup).", ge=0)
    cutmix: float = key(
        0.0, "Replace a box of an image by its neighbour's; the box's share of the area is from Beta(cutmix, cutmix). "
        "With mixup, half of the images are mixed by each.", ge=0,
    )  # fmt: skip
    mix: float = key(1.0, "How often an image is mixed by mixup or cutmix [probability].", ge=0, le=1)
    repeats: int = key(
        1, "How often each example is in a batch, changed differently each time; a pass over the data then takes as "
        "many epochs.", ge=1,
    )  # fmt: skip
    center_crop: float = key(
        1.0, "Side of the middle part that evaluation and predictions see, resized to the whole [fraction].", gt=0, le=1
    )

    sizes: list[int] = key(
        [], "Shorter sides of the pictures that training sees before it sees them whole, each for an equal part of "
        "`grow`; each is a program to compile [pixels].", ge=1,
    )  # fmt: skip
    grow: float = key(0.75, "Share of the training in which it sees pictures at `sizes`.", gt=0, le=1)

    def stages(self, steps: int, batch_size: int) -> tuple[tuple[int, int], ...]:
        """The position up to which each of `sizes` is seen, and that size.

        Args:
            steps: length of the training.
            batch_size: examples a step.
        """
        ends = [round(self.grow * steps * number / len(self.sizes)) for number in range(1, len(self.sizes) + 1)]
        return tuple((end * batch_size, size) for end, size in zip(ends, self.sizes, strict=True))

    @property
    def alternates(self) -> bool:
        """Whether the order of training says which images are mirrored, see `alternates_of`."""
        return self.flip in ("alternating", "auto")

    def alternates_of(self, channels: int) -> bool:
        """Whether images of so many channels are mirrored in every other epoch."""
        return self.flip == "alternating" or (self.flip == "auto" and channels > 1)

    @property
    def mixes(self) -> bool:
        """Whether examples are mixed with one another."""
        return bool(self.mixup or self.cutmix) and self.mix > 0

    @property
    def idle(self) -> list[str]:
        """Keys that are set and do nothing beside the others, see `idle`."""
        random, erased = (self.policy == RANDAUGMENT, "policy=randaugment"), (self.erase > 0, "erase")
        mixed = (self.mix > 0, "mix above 0")
        uses = {
            "operations": random, "magnitude": random, "erase_area": erased, "erase_fill": erased, "mixup": mixed,
            "cutmix": mixed, "mix": (self.mixup > 0 or self.cutmix > 0, "mixup and cutmix"),
            "grow": (bool(self.sizes), "sizes"),
        }  # fmt: skip
        return idle(self, uses)

    def _size_problems(self, config: Whole) -> Iterator[Problem]:
        place, train = "recipe.augment.sizes", config.train
        if any(later <= earlier for earlier, later in itertools.pairwise(self.sizes)):
            what = f"pictures grow, and {place}={self.sizes} does not"
            yield place, what, "give rising numbers below the pictures' shorter side, such as [96,112] of 128"
        for name, on in (("federated.clients", train.federated.on), ("privacy", train.privacy.on)):
            if self.sizes and on:
                yield place, f"batches of train.{name} have one size", f"leave out {place}"

    def problems(self, config: Whole) -> Iterator[Problem]:
        """What of these keys does not go together with the rest of an experiment."""
        train, place = config.train, "recipe.augment"
        yield from self._size_problems(config)
        if train.measures_batch_size or type(train.batch_size) is not int:  # a power of two; refused by its own check
            return
        if train.batch_size % self.repeats:
            what = f"a batch of {train.batch_size} cannot hold each example {self.repeats} times"
            yield f"{place}.repeats", what, "make train.batch_size a multiple of recipe.augment.repeats"
        part = train.batch_size // train.accumulate
        if self.mixes and (part % 2 or train.batch_size // self.repeats < 2):
            name = "mixup" if self.mixup else "cutmix"
            what = f"{name} mixes each example with its neighbour, which a batch of {train.batch_size}"
            what += f" in {train.accumulate} parts" if train.accumulate > 1 else ""
            what += f" with {self.repeats} of each" if self.repeats > 1 else ""
            yield f"{place}.{name}", f"{what} does not have for each", _EVEN
