"""Federated averaging: a round is what a plain loop over clients computes, and depends on nothing but (seed, round)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bigctl
from bigctl import randomness
from bigctl.cli.main import main
from bigctl.config import schema
from bigctl.data.layouts import rounds
from bigctl.engine import fairness, privacy, resolve
from bigctl.engine import federated as settling
from bigctl.errors import BigctlError, ConfigError
from bigctl.optim import server
from bigctl.privacy.accountant import Accountant
from bigctl.runs import comparison, directory
from bigctl.training import federated, updates
from bigctl.training.checkpoints.arrays import read_arrays
from bigctl.training.checkpoints.store import Checkpoints
from tests.training import steps
from tests.training.steps import MLP, NO_DROPOUT, built, start_of

pytestmark = pytest.mark.fewer

PLAIN = (*MLP[:3], "schedule=constant", NO_DROPOUT, "optimizer=sgd", "optimizer.lr=0.3", "optimizer.weight_decay=0")
PLAIN += ("train.ema=0", "train.tensorboard=false")
SHARED = (*PLAIN, "train.federated.clients=8", "train.federated.fraction=0.5")


def leaves(tree: Any) -> np.ndarray:
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def first_round(*overrides: str) -> tuple[Any, Any, np.ndarray]:
    """An experiment, its state after a round, and how far that moved the weights."""
    exp = built(*overrides)
    before, feed = leaves(start_of(exp.programs).params), exp.feed()
    state, done = feed.advance(steps.start(exp), 0, 1)
    assert done == 1
    return exp, state, leaves(state.params) - before


def test_all_clients_with_one_full_batch_are_sgd_on_the_whole() -> None:
    """FedSGD: McMahan et al. 2017, section 2."""
    all_of_them = ("train.federated.clients=7", "train.federated.fraction=1", "train.federated.batch_size=null")
    for split in ("iid", "dirichlet"):
        _, state, moved = first_round(*PLAIN, *all_of_them, f"train.federated.split={split}")
        exp = built(*PLAIN, "train.batch_size=410")
        plain, _ = exp.feed().advance(steps.start(exp), 0, 1)
        assert np.abs(moved).max() > 1e-3
        assert leaves(state.params) == pytest.approx(leaves(plain.params), abs=1e-6)


def test_a_round_is_a_loop_over_clients() -> None:
    """Two epochs of small batches with Adam and FedProx, against single steps of the program without clients."""
    keys = ("optimizer=adam", "optimizer.lr=0.01", "optimizer.weight_decay=0", "train.federated.epochs=2")
    keys += ("train.federated.batch_size=9", "train.federated.mu=0.2", "train.federated.split=shards", "seed=3")
    exp, _, moved = first_round(*SHARED, *keys)
    plain, config = built(*PLAIN, *keys[:3]), exp.config.train.federated
    columns = exp.dataset.splits["train"]
    plan = rounds.by_rounds(exp.dataset.batches, exp.config.train).training_plan(columns, batch_size=1, seed=3)
    assert isinstance(plan, rounds.RoundPlan)
    gradient, rule = jax.jit(plain.programs.step._gradients), plain.programs.step._rule
    start = jax.device_put(start_of(exp.programs))
    shuffle = randomness.key(3, randomness.CLIENTS, 0)
    total, weight = np.zeros_like(moved), 0
    for place, client in enumerate(config.clients and plan.draw.drawn(3, 0)):
        mine, key = plan.members[client], jax.random.fold_in(shuffle, place)
        mask = (np.arange(plan.room) < len(mine)).astype(np.float32)
        params, optimizer = start.params, rule(start.params, plain.programs.hparams)
        state = optimizer.init(params)
        for epoch in range(2):
            order = np.asarray(federated._order(jnp.asarray(mask), jax.random.fold_in(key, epoch)))[: len(mine)]
            assert sorted(order) == list(range(len(mine)))
            for first in range(0, len(mine), 9):
                batch = steps.batch_of(plain, mine[order[first : first + 9]])
                count = len(batch["mask"])
                grads = gradient(params, start.variables, batch, jnp.int32(0), plain.programs.hparams)[0]
                grads = jax.tree.map(lambda g, w, w0, n=count: g / n + 0.2 * (w - w0), grads, params, start.params)
                updates, state = optimizer.update(grads, state, params)
                params = jax.tree.map(jnp.add, params, updates)
        total += len(mine) * (leaves(params) - leaves(start.params))
        weight += len(mine)
    assert np.abs(moved).max() > 0.01
    assert moved == pytest.approx(total / weight, abs=2e-5)


def test_clients_side_by_side_change_nothing_but_rounding() -> None:
    """Three at once, of four: two places are empty."""
    _, one, moved = first_round(*SHARED)
    _, three, other = first_round(*SHARED, "train.federated.at_once=3")
    assert np.abs(moved).max() > 0.01 and other == pytest.approx(moved, abs=1e-5)
    assert np.asarray(three.sums["clients"]) == pytest.approx(np.asarray(one.sums["clients"])) == [4, 1]


def test_a_client_that_sends_nothing_back_counts_for_nothing() -> None:
    keys = (*SHARED, "train.federated.dropout=0.6", "seed=1")
    exp, state, moved = first_round(*keys)
    draw = rounds.draw_of(exp.config.train)
    there = [int((draw.drawn(1, number) >= 0).sum()) for number in range(200)]
    assert np.mean(there) == pytest.approx(4 * 0.4, abs=0.3)
    assert float(state.sums["clients"][0]) == there[0] > 0
    nobody = there.index(0)
    size, feed, state = exp.config.train.batch_size, exp.feed(), steps.start(exp)
    before = leaves(state.params)
    state, _ = feed.advance(state, nobody * size, 1)
    assert (leaves(state.params) == before).all() and np.abs(moved).max() > 0.01


def test_weights_are_by_examples_or_equal() -> None:
    """Of two clients, one of which has most examples, in one full batch each."""
    exp = built(*PLAIN, "train.federated.clients=2", "train.federated.fraction=1", "train.federated.batch_size=null")
    few = jnp.asarray(np.arange(410) < 5)
    batch = steps.batch_of(exp, np.tile(np.arange(410), 2), np.concatenate([np.ones(410), few]))
    found = {}
    for weights in ("examples", "equal"):
        config = schema.Federated(clients=2, fraction=1.0, batch_size=None, weights=weights)
        step = exp.programs.step
        train = dataclasses.replace(step.config.train, federated=config)
        step = dataclasses.replace(step, config=dataclasses.replace(step.config, train=train))
        start = jax.device_put(start_of(exp.programs))
        grads, _, _ = jax.jit(step._gradients)(start.params, start.variables, batch, jnp.int32(0), exp.programs.hparams)
        found[weights] = leaves(grads)
    both, mean = found["examples"], found["equal"]
    few_alone = (both * 415 - mean * 820) / (5 - 410)  # of two equations
    assert mean == pytest.approx((few_alone + (both * 415 - few_alone * 5) / 410) / 2, abs=1e-6)
    assert np.abs(both - mean).max() > 1e-3


def test_clients_of_a_pruned_network_train_it_pruned() -> None:
    exp = built(*SHARED)
    step = exp.programs.step
    step = dataclasses.replace(
        step, config=dataclasses.replace(step.config, train=dataclasses.replace(step.config.train, keep_zeros=True))
    )
    start, batch = start_of(exp.programs), steps.batch_of(exp, np.arange(200))  # four clients of a round, 50 each
    pruned = jax.tree_util.tree_map_with_path(
        lambda path, x: np.where(np.indices(x.shape).sum(0) % 2, x, 0) if "layers" in str(path) and x.ndim == 2 else x,
        start.params,
    )
    hparams = exp.programs.hparams
    found, _, _ = jax.jit(step._gradients)(pruned, start.variables, batch, jnp.int32(0), hparams)
    kernel, moved = pruned["layers"][0]["kernel"], np.asarray(found["layers"][0]["kernel"])
    assert (moved[kernel == 0] == 0).all() and np.abs(moved[kernel != 0]).max() > 1e-4


@pytest.mark.parametrize("name", ["avg", "momentum", "adagrad", "adam", "yogi"])
def test_servers_do_what_their_papers_say(name: str) -> None:
    """Hsu et al. 2019; Reddi et al. 2021, Algorithm 2, where the update is what is added."""
    keys = schema.Federated(server=name, server_lr=0.5, server_momentum=0.8, server_beta2=0.9, server_tau=0.1)
    rule = server.server_rule(keys)
    weights, rng = jnp.zeros(3), np.random.default_rng(0)
    state, x, m, v = rule.init(weights), np.zeros(3), np.zeros(3), np.full(3, 0.01)
    for _ in range(4):
        delta = rng.normal(size=3)
        updates, state = rule.update(jnp.asarray(-delta, jnp.float32), state, weights)
        weights += updates
        if name in ("avg", "momentum"):
            m = delta if name == "avg" else 0.8 * m + delta
            x = x + 0.5 * m
            continue
        m = 0.8 * m + 0.2 * delta
        squares = {"adagrad": v + delta**2, "adam": 0.9 * v + 0.1 * delta**2}
        v = squares.get(name, v - 0.1 * delta**2 * np.sign(v - delta**2))
        x = x + 0.5 * m / (np.sqrt(v) + 0.1)
    assert np.asarray(weights) == pytest.approx(x, abs=1e-5)


REFUSED = (
    (["recipe=cnn_cls", "model.norm=batch"], "batch normalisation keeps statistics"),
    (["recipe=cnn_cls", "train.accumulate=2"], "train.accumulate=2 cuts a batch of the server"),
    (["recipe=gpt_lm"], "no examples that could be a client's"),
    (["recipe=probe"], "solves for all examples"),
    (["recipe=cnn_cls", "recipe.augment.mixup=0.2"], "mixup mixes examples"),
    (["recipe=cnn_cls", "distil.teacher=some"], "a teacher sees the examples of all clients"),
    (["recipe=cnn_cls", "train.batch_size=auto"], "is not measured"),
    (["recipe=cnn_cls", "train.overfit_one_batch=true"], "one batch for ever"),
    (["recipe=cnn_cls", "train.privacy.noise=1"], "promises something of each example"),
    (["recipe=cnn_cls", "train.privacy.noise=1", "train.privacy.unit=client"], "some count for many"),
    (["recipe=cnn_cls", "train.federated.column=author", "train.federated.split=shards"], "both say who has"),
)


def test_what_does_not_go_with_clients_is_refused() -> None:
    for overrides, said in REFUSED:
        with pytest.raises(ConfigError, match=said):
            bigctl.compose([*overrides, "train.federated.clients=5"])


def settled(*overrides: str) -> Any:
    return resolve.resolve(bigctl.compose([*PLAIN, *overrides]))


def test_data_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ConfigError, match="411 clients are more than the 410 training examples"):
        settled("train.federated.clients=411")
    with pytest.raises(ConfigError, match="206 clients of 2 shards are more than") as told:
        settled("train.federated.clients=206", "train.federated.split=shards")
    assert told.value.hint == "train.federated.clients=205 or less"
    with pytest.raises(ConfigError, match="there is no column 'mean radus'"):
        settled("train.federated.column=mean radus")


def test_who_takes_part_and_what_they_lack_is_told() -> None:
    resolved = settled("train.federated.clients=20", "train.federated.split=shards", "train.federated.shards=1",
                       "train.federated.epochs=3")  # fmt: skip
    assert resolved.config.train.batch_size == 123  # three times over what 2 of 20 clients have of 410 examples
    first, second = settling.announcement(resolved.config, resolved.dataset)
    assert "a round of 2 of 20 clients, each 3 times over its examples in batches of 10; they have 20 to 21" in first
    assert second == "note: 19 clients lack a class: they have 1 to 2 of 2"
    pretraining = dataclasses.replace(resolved.config, recipe=schema.BertMlm())  # learns no classes that data has
    assert len([*settling.announcement(pretraining, resolved.dataset)]) == 1
    idle = settled("train.federated.clients=20", "train.federated.alpha=0.1", "train.federated.server=momentum",
                   "train.federated.server_momentum=0.5", "train.federated.server_tau=0.1")  # fmt: skip
    assert list(settling.announcement(idle.config, idle.dataset, ["seed=1", "train.batch_size=7"]))[1:] == [
        "note: train.federated.alpha does nothing here: it is for split=dirichlet alone",
        "note: train.federated.server_tau does nothing here: it is for server=adagrad, adam and yogi alone",
        "note: train.batch_size follows from what clients have, train.federated.batch_size is that of their steps",
    ]
    plain = settled("train.federated.mu=1")
    assert "nothing is federated" in next(settling.announcement(plain.config, plain.dataset))


def test_a_dry_run_tells_who_takes_part_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *SHARED, "train.federated.keep=0.5", "train.steps=2", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "federated: a step is a round of 4 of 8 clients" in told
    assert "note: train.federated.keep does nothing here: it is for compress=topk alone" in told


def test_clients_of_a_column_are_its_values(tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), ["ann", "bob", "cy"]
    rows = [
        f"{x:.3f},{names[i % 3 if i % 5 else 0]},{'yes' if x > 0 else 'no'}" for i, x in enumerate(rng.normal(size=90))
    ]
    (tmp_path / "rows.csv").write_text("x,who,answer\n" + "\n".join(rows) + "\n")
    config = ("data=csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=answer", "recipe=mlp_cls",
              "train.federated.column=who")  # fmt: skip
    resolved = resolve.resolve(bigctl.compose([*config]))
    owners = resolved.dataset.splits["train"][rounds.OWNER]
    assert resolved.config.train.federated.clients == 3
    counts = np.bincount(owners)
    assert counts.argmax() == 0 and counts.sum() == resolved.dataset.size("train")
    with pytest.raises(ConfigError, match="who has 3 values in the training split") as told:
        resolve.resolve(bigctl.compose([*config, "train.federated.clients=4"]))
    assert told.value.hint == "leave it out, or give 3"
    numbers = ("data=csv", f"data.path={tmp_path / 'rows.csv'}", "data.label=x", "recipe=mlp_cls")
    numbers += ("model.head=regression", "train.federated.clients=5")
    assert resolve.resolve(bigctl.compose([*numbers, "train.federated.split=shards"]))  # by the size of the number
    with pytest.raises(ConfigError, match="have not one each"):
        resolve.resolve(bigctl.compose([*numbers, "train.federated.split=dirichlet"]))


PRIVATE = ("train.privacy.unit=client", "train.federated.weights=equal", "train.privacy.clip=0.2")


def test_resumed_run_is_bit_equal_and_its_epsilon_goes_on(tmp_path: Path) -> None:
    """With all that is drawn: clients by chance, who drops out, rounding, noise."""
    keys = [*SHARED, *PRIVATE, "train.federated.server=adam", "train.federated.server_lr=0.05"]
    keys += ["train.privacy.noise=2", "train.federated.dropout=0.2", "train.federated.compress=int8"]
    keys += ["checkpoint.every=3", "eval.every=3", "train.log_every=1"]
    given = ["--require", "privacy/epsilon<=9", "--run-dir", str(tmp_path / "whole"), "--quiet"]
    assert main(["train", *keys, "train.steps=6", *given]) == 0
    bigctl.train([*keys, "train.steps=3"], tmp_path / "parts", quiet=True)
    bigctl.train([*keys, "train.steps=6"], tmp_path / "parts", quiet=True)
    saved = [Checkpoints(tmp_path / name / "checkpoints").find(6) for name in ("whole", "parts")]
    whole, parts = (read_arrays(each.path, list(each.meta["shapes"])) for each in saved)
    assert whole.keys() == parts.keys() and any(name.startswith("opt_state") for name in whole)
    assert all((whole[name] == parts[name]).all() for name in whole)
    lines = [comparison.lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    names = ("train/loss", "train/clients", "train/upload_bytes", "train/clipped", "privacy/epsilon")
    logged = [{line["step"]: [line[name] for name in names] for line in each if names[0] in line} for each in lines]
    assert logged[0] == logged[1] and len(logged[0]) == 6
    expected = [Accountant(2.0, 0.5, 1e-5).epsilon(step) for step in range(1, 7)]  # 4 of 8 clients, not 32 examples
    assert [values[-1] for values in logged[0].values()] == pytest.approx(expected)
    assert {values[2] / values[1] for values in logged[0].values() if values[1]} == {8 * 30 + 8 + 8 + 1 + 4 * 4}
    summary = directory.locate(str(tmp_path / "parts")).summary()
    assert summary is not None and summary["privacy"]["unit"] == "client"
    assert sum(summary["federated"]["histogram"]) == summary["federated"]["scored"] == 8
    assert main(["report", str(tmp_path / "parts"), "--samples", "0", "--out", str(tmp_path / "page.html")]) == 0
    assert "The worst served" in (tmp_path / "page.html").read_text()
    with pytest.raises(BigctlError, match="another configuration: train.federated.fraction: 0.5 -> 0.25"):
        bigctl.train([*keys, "train.steps=7", "train.federated.fraction=0.25"], tmp_path / "parts", quiet=True)


def test_a_private_round_is_the_clipped_sum_over_who_is_expected_and_noise() -> None:
    """Each client's update scaled down to the clip, by the round without privacy of these same clients."""
    exp, state, moved = first_round(*SHARED, *PRIVATE, "train.privacy.noise=1e-6", "train.federated.batch_size=null")
    draw = rounds.draw_of(exp.config.train)
    total, start = np.zeros_like(moved), jax.device_put(start_of(exp.programs))
    clients = [client for client in draw.drawn(0, 0) if client >= 0]
    plain = built(*PLAIN)
    gradient = jax.jit(plain.programs.step._gradients)
    for client in clients:
        mine = np.flatnonzero(exp.dataset.splits["train"][rounds.OWNER] == client)
        batch = steps.batch_of(plain, np.resize(mine, 64), np.arange(64) < len(mine))
        grads = gradient(start.params, start.variables, batch, jnp.int32(0), plain.programs.hparams)[0]
        update = -0.3 * leaves(grads) / len(mine)
        total += update * min(1, 0.2 / np.linalg.norm(update))
    assert np.asarray(state.sums["clipped"])[0] > 0
    assert moved == pytest.approx(total / 4, abs=1e-5)  # and not by how many were drawn
    _, _, noisy = first_round(*SHARED, *PRIVATE, "train.privacy.noise=3", "train.federated.batch_size=null")
    noise = (noisy - moved) * 4
    assert noise.std() == pytest.approx(3 * 0.2, rel=4 / np.sqrt(2 * len(noise)))


def test_noise_is_solved_by_clients_and_rounds() -> None:
    given = (*PRIVATE, "train.privacy.accountant=rdp", "train.federated.clients=100", "train.steps=30")
    config = settled(*given, "train.privacy.epsilon=4").config
    assert config.train.privacy.noise is not None
    assert 3.99 < Accountant(config.train.privacy.noise, 0.1, 1e-5, "rdp").epsilon(30) <= 4
    resolved = settled(*given, "train.privacy.noise=1", "train.privacy.delta=0.02")
    told = list(privacy.announcement(resolved.config, resolved.dataset, 30))
    assert "each with every client at probability 0.1" in told[0]
    assert told[1] == "note: train.privacy.delta=0.02 should be well below 1 / 100 clients"
    with pytest.raises(ConfigError, match="is about clients, and there are none"):
        bigctl.compose([*PLAIN, "train.privacy.noise=1", "train.privacy.unit=client"])


def test_the_largest_numbers_are_sent_or_all_in_8_bits() -> None:
    rng = np.random.default_rng(0)
    update = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((30, 8), (8,), (8, 1))]
    flat, key = leaves(update), jax.random.key(0)
    few = schema.Federated(compress="topk", keep=0.1)
    sent = leaves(updates.compressed(update, few, key))
    assert (sent != 0).sum() == 26 and updates.sent_bytes(update, few) == 26 * 8
    assert (sent[sent != 0] == flat[sent != 0]).all() and np.abs(flat[sent == 0]).max() < np.abs(sent[sent != 0]).min()
    small = schema.Federated(compress="int8")
    drawn = jax.vmap(lambda key: updates.compressed(update, small, key))(jax.random.split(key, 2000))
    for ours, theirs in zip(drawn, update, strict=True):
        step = float(jnp.abs(theirs).max()) / 127
        levels = np.asarray(ours, np.float64) / step
        assert np.abs(levels - levels.round()).max() <= 1e-3 and np.abs(levels).max() <= 127.001
        assert np.asarray(ours).mean(0) == pytest.approx(np.asarray(theirs), abs=step * 0.06)
    assert updates.sent_bytes(update, small) == 256 + 12 and updates.sent_bytes(update, schema.Federated()) == 1024


def test_the_client_that_is_served_worst_is_found() -> None:
    """One of which every test example is taken for the other class; all others are right but for one example."""
    exp = built(*PLAIN, "train.federated.clients=12", "train.federated.split=shards")
    labels, train = np.asarray(exp.dataset.splits["test"]["label"]), exp.dataset.splits["train"]
    owners = settling.owners_of(exp.config, exp.dataset, "test", settling.law_of(exp.config, exp.dataset))
    wrong = owners == 7
    wrong[np.flatnonzero(owners == 2)[0]] = True
    told = {"predicted": np.where(wrong, 1 - labels, labels), "loss": np.ones(len(labels)), "probability": labels}
    found = fairness.of_clients(exp.config, exp.dataset, exp.task, told)
    assert found is not None and found["scored"] == 12 and found["accuracy"]["best"] == found["accuracy"]["median"] == 1
    first, second, *rest = found["worst"]
    assert (first["client"], first["accuracy"], second["client"]) == (7, 0, 2)
    assert second["accuracy"] == pytest.approx(1 - 1 / (owners == 2).sum())
    assert all(each["accuracy"] == 1 for each in rest)
    mine = np.bincount(train["label"][train[rounds.OWNER] == 7])
    assert first["classes"].startswith(f"{exp.dataset.features.target.names[mine.argmax()]} {mine.max()}")
    assert fairness.of_clients(built(*PLAIN).config, exp.dataset, exp.task, told) is None
    assert fairness.of_clients(exp.config, exp.dataset, exp.task, {}) is None


def test_a_model_that_keeps_statistics_is_refused() -> None:
    with pytest.raises(ConfigError, match="keeps statistics of batches, whose average over clients is not defined"):
        settling.require_no_statistics(
            bigctl.compose([*SHARED]), built("recipe=mlp_cls", "data=breast_cancer", "model.norm=batch").programs
        )
    settling.require_no_statistics(bigctl.compose([*SHARED]), built(*SHARED).programs)


def test_several_devices_are_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    class Two:
        size, shape = 2, {"data": 2, "fsdp": 1}

    with pytest.raises(ConfigError, match=r"the mesh has 2 \(data=2\)"):
        settling.require_one_device(bigctl.compose([*SHARED]), Two())  # type: ignore[arg-type]
