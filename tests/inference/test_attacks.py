"""Attacks reach what theory says, stay in their ball, and masked gradients are found out."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl.cli.main import main
from bigctl.errors import ConfigError
from bigctl.inference.attacks import ensemble, gradient, threat
from bigctl.inference.attacks.ensemble import Effort
from bigctl.inference.attacks.square import square
from bigctl.inference.attacks.threat import Threat
from bigctl.reports import trust
from bigctl.runs import directory

pytestmark = pytest.mark.fewer

KEY = jax.random.key(0)
BRIEF = Effort(steps=10, restarts=1, queries=60)
ATTACKS = {
    "fgsm": gradient.fgsm,
    "pgd": gradient.pgd,
    "apgd": gradient.apgd,
    "apgd-dlr": partial(gradient.apgd, loss=gradient.dlr),
    "square": square,
}


def drawn(count: int = 60, width: int = 12, classes: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A linear model, its inputs, and what it says of them."""
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(width, classes)), rng.normal(size=(count, width))
    return weights.astype(np.float32), x.astype(np.float32), (x @ weights).argmax(1)


@pytest.mark.parametrize("norm", threat.NORMS)
@pytest.mark.parametrize("name", ["pgd", "apgd"])
def test_a_linear_model_breaks_exactly_where_the_closed_form_says(name: str, norm: str) -> None:
    """The margin over class j falls by eps times the dual norm of the difference of weights, and no further."""
    weights, x, labels = drawn()
    dual = 1 if norm == "linf" else 2
    free, eps = Threat(norm, -np.inf, np.inf), 0.3 if norm == "linf" else 0.8
    logits = x @ weights
    gaps = np.linalg.norm(weights[:, None, :] - weights[:, :, None], dual, axis=0)  # [classes, classes]
    margins = logits[np.arange(len(x)), labels][:, None] - logits - eps * gaps[labels]
    margins[np.arange(len(x)), labels] = np.inf
    breaks = margins.min(1) < 0
    assert 0.2 < breaks.mean() < 0.9
    made = ATTACKS[name](lambda z: z @ weights, free, jnp.asarray(x), jnp.asarray(labels), eps, KEY)
    found = (np.asarray(made) @ weights).argmax(1) != labels
    assert (found <= breaks).all(), "nothing breaks that cannot"
    sure = np.abs(margins.min(1)) > 1e-3
    assert (found == breaks)[sure].all()


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_stay_in_the_ball_and_within_bounds(name: str, norm: str) -> None:
    rng = np.random.default_rng(1)
    weights, x = rng.normal(size=(48, 3)).astype(np.float32), rng.random((6, 4, 4, 3), np.float32)
    eps, free = 0.25, np.ones((4, 4, 3), np.float32)
    free[0] = 0
    given = (jnp.asarray(x), jnp.zeros(6, jnp.int32), eps, KEY)
    made = np.asarray(ATTACKS[name](lambda z: z.reshape(len(z), -1) @ weights, Threat(norm, free=free), *given))
    moved = (made - x).reshape(6, -1)
    size = np.abs(moved).max(1) if norm == "linf" else np.linalg.norm(moved, axis=1)
    assert (size <= eps * 1.0001).all() and made.min() >= 0 and made.max() <= 1
    assert (made[:, 0] == x[:, 0]).all() and size.max() > 0.5 * eps


def test_losses_are_those_of_the_papers() -> None:
    logits, labels = jnp.array([[3.0, 1.0, 0.5, -1.0], [0.2, 0.9, 0.4, 0.1]]), jnp.array([0, 2])
    assert gradient.dlr(logits, labels) == pytest.approx([-(3 - 1) / (3 - 0.5), -(0.4 - 0.9) / (0.9 - 0.2)])
    assert gradient.dlr(7 * logits, labels) == pytest.approx(gradient.dlr(logits, labels))
    assert gradient.margin(logits, labels) == pytest.approx([-2, 0.5])
    checks, spans = gradient.checkpoints(100)  # the paper's 22%, 41%, 57%, 70%, 80%, 87%, 93%, 99%
    assert (np.flatnonzero(checks) + 1).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    assert spans[checks].tolist() == [22, 19, 16, 13, 10, 7, 6, 6]


@pytest.fixture(scope="module")
def network() -> tuple[dict, np.ndarray, np.ndarray]:
    """A small network that tells apart which half of a picture is brighter, and the pictures."""
    rng = np.random.default_rng(0)
    x = rng.random((300, 6, 6, 1), np.float32)
    labels = rng.integers(0, 3, 300)
    for row, label in enumerate(labels):
        x[row, 2 * label : 2 * label + 2] = np.clip(x[row, 2 * label : 2 * label + 2] + 0.5, 0, 1)
    weights = {"in": rng.normal(size=(36, 16)) / 6, "out": rng.normal(size=(16, 3)) / 4}
    weights = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), weights)

    def loss(weights: dict) -> jax.Array:
        return gradient.cross_entropy(plain(weights, jnp.asarray(x)), jnp.asarray(labels)).mean()

    step = jax.jit(lambda w: jax.tree.map(lambda a, g: a - 0.5 * g, w, jax.grad(loss)(w)))
    for _ in range(200):
        weights = step(weights)
    return weights, x, labels


def plain(weights: dict, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x.reshape(len(x), -1) @ weights["in"]) @ weights["out"]


def stairs(weights: dict, x: jax.Array) -> jax.Array:
    """The same of inputs that are rounded: no gradient comes through."""
    return plain(weights, jnp.round(x * 8) / 8)


def saturated(weights: dict, x: jax.Array) -> jax.Array:
    """The same so sure of itself that the softmax is exactly 1."""
    return 1000 * plain(weights, x)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        pytest.param(plain, (), marks=pytest.mark.slow),
        (stairs, ("black box", "gradient of the loss is 0", "any input at all")),
        pytest.param(saturated, ("no scaling changes", "gradient of the loss is 0"), marks=pytest.mark.slow),
    ],
)
def test_masked_gradients_are_found_out(ask: ensemble.Ask, said: tuple[str, ...], network: tuple) -> None:
    weights, x, labels = network
    found = ensemble.evaluate(
        ask, weights, x[:150], labels[:150], Threat("linf"), [0.02, 0.12], classes=3, effort=Effort(15, 1, 200)
    )
    assert found.clean > 0.9 and len(found.points) == 2
    low, high = (point.robust for point in found.points)
    assert found.clean >= low > high
    assert all(any(each in warning for warning in found.warnings) for each in said), found.warnings
    assert bool(found.warnings) == bool(said)
    for point in found.points:
        assert list(point.left.values()) == sorted(point.left.values(), reverse=True)
    broken = np.isfinite(found.broken_at) & (found.broken_at > 0)
    told = np.asarray(ask(weights, jnp.asarray(found.attacked[broken]))).argmax(1)
    assert (told != labels[:150][broken]).all(), "what is kept of an attack is wrong"
    apart = np.abs(found.attacked - x[:150]).reshape(150, -1).max(1)
    assert (apart[broken] <= found.broken_at[broken] + 1e-6).all()


def test_the_same_seed_gives_the_same_attack(network: tuple) -> None:
    weights, x, labels = network
    one, two, other = (
        ensemble.Arena(plain, weights, Threat("linf"), seed).attack(
            "a", partial(square, queries=10), x[:9], labels[:9], 0.05
        )
        for seed in (0, 0, 1)
    )
    assert (one == two).all() and (one != other).any()


# ------------------------------------------------------------------------------------------------------- of a real run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("attacks") / "digits"
    keys = ["recipe=cnn_cls", "data=digits", "train.steps=120", "model.channels=[8]", "train.tensorboard=false"]
    bigctl.train([*keys, "optimizer.lr=0.01"], path, quiet=True)
    return path


@pytest.mark.slow
def test_a_run_under_attack(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    brief = ["--count", "40", "--attack-steps", "10", "--attack-queries", "40"]
    assert main(["eval", str(run), "--robust", "linf=0.3,0.02", *brief, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["robust"]
    low, high = told["points"]
    assert (low["eps"], high["eps"]) == (0.02, 0.3) and told["clean"] > 0.8 and told["seed"] == 0
    assert told["clean"] >= low["robust"] > high["robust"] and high["robust"] < 0.3
    assert told["warnings"] == [] and len(told["worst"]) == 8 and told["count"] == 40
    page = trust.of_run(directory.locate(str(run)))
    assert page is not None and len(page.pictures) == 8 and page.pictures[0].image.startswith("data:image/png")
    assert "all attacks" in str(page.figures[0].data)
    assert main(["eval", str(run), "--robust", "l2=0.5", *brief]) == 0
    assert "after Square" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_attacked_is_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["linf=8"], "of pixels from 0 to 255 it is linf=0.03137"),
        (["l2=128"], "of pixels from 0 to 255 it is l2=0.502"),
        (["linf=-1"], "is no attack"),
        (["l7=1"], "is no attack"),
        (["linf=0.1", "--count", "3"], "3 examples say nothing"),
    ):
        assert main(["eval", str(run), "--robust", *words]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(ConfigError, match="is no attack"):
        threat.parse("linf")
