"""What a round of federated averaging takes here: of `train.federated`, one dispatched program, and of a plain loop in
Python over clients and batches that dispatches the same steps one by one; in turns, in time of the processor and by
the clock. Both start at the same weights and show each client its examples in the same order: how far apart the weights
are that come out is printed. With --flower its simulation is measured too, which `pip install "flwr[simulation]"`
brings: clients that train by the plain loop's steps, and Flower's FedAvg.

Images of noise in the shape of MNIST; shards of two classes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import _bench

EXAMPLES = """\
examples:
  python scripts/bench_federated.py
  python scripts/bench_federated.py --model mlp --clients 100 --epochs 5 --rounds 20
  python scripts/bench_federated.py --examples 60000 --epochs 5 --rounds 3
"""
STILL = ("recipe.augment.rotate=0", "recipe.augment.scale=0", "recipe.augment.shift=0")
MODELS = {
    "cnn": (["recipe=cnn_cls", "model.channels=[16,32]", "model.hidden=[64]", *STILL], "image", (28, 28, 1)),
    "mlp": (["recipe=mlp_cls", "model.hidden=[64]", "model.dropout=0"], "table", (50,)),
}
"""Overrides, and the data of each."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=sorted(MODELS), default="cnn", help="what is trained (default %(default)s)")
    parser.add_argument("--clients", type=int, default=100, help="there are (default %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.1, help="of them in a round (default %(default)s)")
    parser.add_argument("--examples", type=int, default=6000, help="of all clients (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=1, help="of a client (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=10, help="of a client (default %(default)s)")
    parser.add_argument("--at-once", type=int, default=1, help="clients side by side (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=6, help="blocks of each, a round each (default %(default)s)")
    parser.add_argument("--flower", action="store_true", help="measure Flower's simulation too")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.print_facts("jax", "flax", "optax", *(["flwr", "ray"] if options.flower else []))
    plain = made(options)
    built = plain.built
    print(f"weights after a round differ by {plain.difference():.1e} at most")
    advance = _bench.stepper(built)
    candidates: dict[str, Callable[[], None]] = {"one program": lambda: advance(1), "loop": plain.round}
    measured = {f"{name}, {unit}": _block(work, clock) for name, work in candidates.items()
                for unit, clock in (("processor", time.process_time), ("clock", time.perf_counter))}  # fmt: skip
    samples = _bench.interleave(measured, options.rounds, patience=options.patience)
    rows = [[name, sorted(taken)[len(taken) // 2], min(taken)] for name, taken in samples.items()]
    if options.flower:
        import _federated_peer

        rows.append(["Flower, clock", *_federated_peer.seconds(options)])
    _bench.table(("a round", "median [s]", "least [s]"), rows)
    for unit in ("processor", "clock"):
        medians, minima, within = _bench.ratio(samples, f"loop, {unit}", f"one program, {unit}")
        print(
            f"loop / one program, {unit}: {medians:.2f} by medians, {minima:.2f} by minima, {within:.2f} within rounds"
        )


def made(options: argparse.Namespace) -> Plain:
    """The plain loop, with the federated experiment that it follows."""
    keys, kind, shape = MODELS[options.model]
    keys = [*keys, "optimizer=sgd", "optimizer.lr=0.02", "optimizer.weight_decay=0", "schedule=constant"]
    keys += ["train.ema=0", "mesh=single", "train.steps=1000"]
    told = {"clients": options.clients, "fraction": options.fraction, "epochs": options.epochs, "split": "shards"}
    told |= {"batch_size": options.batch_size, "at_once": options.at_once}
    data = _bench.synthetic(kind, options.examples, shape)
    built = _bench.experiment([*keys, *(f"train.federated.{key}={value}" for key, value in told.items())], data)
    return Plain(built, _bench.experiment([*keys, f"train.batch_size={options.batch_size}"], data))


def _block(work: Callable[[], None], clock: Callable[[], float]) -> Callable[[], float]:
    def taken() -> float:
        start = clock()
        work()
        return clock() - start

    return taken


class Plain:
    """A round as a loop in Python: a compiled step for each batch, an average on the host.

    Args:
        built: the federated experiment, for who has what, and in which order.
        alone: the same without clients, for its step.
    """

    def __init__(self, built: Any, alone: Any):
        import jax
        import numpy as np

        from bigctl.data.layouts import rounds

        self.built, self.programs, self.number = built, alone.programs, 0
        self.columns = {name: np.asarray(values) for name, values in alone.dataset.splits["train"].items()}
        layout = rounds.by_rounds(built.dataset.batches, built.config.train)
        plan = layout.training_plan(built.dataset.splits["train"], batch_size=1, seed=built.config.seed)
        assert isinstance(plan, rounds.RoundPlan)
        self.plan = plan
        step = self.programs.step

        def train(state: Any, batch: Any) -> Any:
            return step.train(state, batch, self.programs.hparams)

        self.step, self.start = jax.jit(train), jax.device_get(self.programs.initialise())
        self.params = self.start.params

    def round(self) -> None:
        """From the weights as they are."""
        import jax
        import numpy as np

        from bigctl import randomness

        config, number = self.built.config, self.number
        key = randomness.key(config.seed, randomness.CLIENTS, number)
        sent, counts = [], []
        for place, client in enumerate(self.plan.draw.drawn(config.seed, number).tolist()):
            mine = self.plan.members[client]
            sent.append(self.train(self.params, mine, jax.random.fold_in(key, place)))
            counts.append(len(mine))
        weights = np.array(counts) / sum(counts)
        self.params = jax.tree.map(lambda *each: sum(w * x for w, x in zip(weights, each, strict=True)), *sent)
        self.number += 1

    def train(self, params: Any, mine: Any, key: Any) -> Any:
        """What a client sends: its weights after training on examples with these numbers."""
        import dataclasses

        import jax
        import jax.numpy as jnp
        import numpy as np

        from bigctl.training import federated
        from bigctl.training.step import add_places

        keys, room = self.built.config.train.federated, self.plan.room
        state = dataclasses.replace(self.start, params=params)
        for epoch in range(keys.epochs):
            mask = jnp.asarray(np.arange(room) < len(mine), jnp.float32)
            order = np.asarray(federated._order(mask, jax.random.fold_in(key, epoch)))[: len(mine)]
            for first in range(0, len(mine), keys.batch_size):
                chosen = mine[order[first : first + keys.batch_size]]
                real = np.arange(keys.batch_size) < len(chosen)
                rows = np.resize(chosen, keys.batch_size)
                batch: dict[str, Any] = {name: values[rows] for name, values in self.columns.items()}
                state = self.step(state, add_places(batch, keys.batch_size, jnp.asarray(real, jnp.float32)))
        return jax.device_get(state.params)

    def difference(self) -> float:
        """Between the weights after the first round and those of `train.federated`, at most."""
        import jax
        import numpy as np

        self.round()
        state, _ = self.built.feed().advance(self.built.programs.initialise(), 0, 1)
        apart = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a) - b).max()), state.params, self.params)
        return max(jax.tree.leaves(apart))


if __name__ == "__main__":
    main()
