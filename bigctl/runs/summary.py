"""What `summary.json` holds: the result of a finished run."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from bigctl.runs.baselines import Baseline


class Times(TypedDict):
    """Where the wall time of a start went [s]; `wall` is all of it."""

    wall: float
    train: float
    compile: float
    data_wait: float
    evaluate: float
    checkpoint: float


class FollowedUp(TypedDict):
    """What the scores of the test split are looked at with.

    `curves` are those of `recipes.curves.described`; `mistakes` the worst ones, with their `row` in the split.
    """

    curves: dict[str, Any]
    mistakes: list[dict[str, Any]]


class Overfit(TypedDict):
    """What `train.overfit_one_batch` came to: the loss of that batch, and whether the model has learnt it."""

    first_loss: float
    last_loss: float
    accuracy: float | None
    learned: bool


class Waited(TypedDict):
    """What training waited for: its share of the time, "disk", "decode" or "transfer", the seconds that each was busy,
    and all that in a sentence with what helps."""

    share: float
    cause: str
    seconds: dict[str, float]
    sentence: str


class Privacy(TypedDict):
    """What is promised: no `unit`, an example or a client, added or removed, changes how likely a model is by more than
    a factor of e^epsilon, but for delta. After so many `steps` with `noise` times `clip` added to sums of gradients, or
    of clients' updates, no longer than `clip`."""

    epsilon: float
    delta: float
    steps: int
    noise: float
    sampling_rate: float
    clip: float
    accountant: str
    unit: NotRequired[str]


class Served(TypedDict):
    """A client, by its number: its training and test examples, and the classes that it has most of, as text."""

    client: int
    examples: int
    scored: int
    accuracy: float
    classes: str


class Federated(TypedDict):
    """How the clients of a federated training are served, each on its part of the test split.

    `scored` of all `clients` have such; `accuracy` has mean, worst, tenth, median and best of theirs, `spread` is their
    standard deviation, and `spread_by_chance` what it would be if all were served alike; `histogram` counts clients in
    equal parts from 0 to 1.
    """

    clients: int
    scored: int
    split: str
    accuracy: dict[str, float]
    spread: float
    spread_by_chance: float
    histogram: list[int]
    worst: list[Served]


class Summary(TypedDict):
    """The result of a run.

    `metrics` are flat, "val/accuracy" of the selected checkpoint and "test/accuracy"; `confusion` is that of the test
    split, rows are true classes; `positive` is the class of binary metrics. `stopped` says why training ended early,
    and is empty where it did not.
    """

    schema: int
    run: str
    recipe: str
    status: str
    step: int
    epoch: float
    stopped: str
    skipped: int
    rewinds: int
    selected_step: int | None
    selected_by: str
    metrics: dict[str, float | None]
    confusion: list[list[int]] | None
    positive: NotRequired[str | None]
    curves: NotRequired[dict[str, Any]]
    mistakes: NotRequired[list[dict[str, Any]]]
    classes: list[str]
    parameters: int
    data: dict[str, str | int]
    resumed_from: int
    devices: dict[str, object]
    timings: Times
    examples_per_s: float | None
    profile: list[str]
    tokens_per_s: NotRequired[float]
    mfu: NotRequired[float]
    flops_per_token: NotRequired[float]
    already_complete: NotRequired[bool]
    overfit: NotRequired[Overfit]
    privacy: NotRequired[Privacy]
    federated: NotRequired[Federated]
    waiting: NotRequired[Waited]
    baseline: NotRequired[Baseline]
