"""Flower's simulation of a round, for `bench_federated.py`: its clients train by the steps of the plain loop there."""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

WARMUP = 3
"""Rounds in which its processes start, and compile."""


_HELD: list[Any] = []


def _loop(options: argparse.Namespace) -> Any:
    """The plain loop, made once in each process."""
    import bench_federated

    if not _HELD:
        _HELD.append(bench_federated.made(options))
    return _HELD[0]


def seconds(options: argparse.Namespace) -> tuple[float, float]:
    """The median and the least of `options.rounds` rounds, by the clock; `options` as the benchmark has them."""
    os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    import jax
    from flwr.client import ClientApp, NumPyClient
    from flwr.common import Context, ndarrays_to_parameters
    from flwr.server import ServerApp, ServerAppComponents, ServerConfig
    from flwr.server.strategy import FedAvg
    from flwr.simulation import run_simulation

    here, begun = _loop(options), []

    class Client(NumPyClient):  # type: ignore[misc]
        def __init__(self, number: int):
            self.number = number

        def fit(self, parameters: Any, config: Any) -> Any:
            loop = _loop(options)
            structure = jax.tree.structure(loop.params)
            mine = loop.plan.members[self.number]
            key = jax.random.key(self.number, impl="threefry2x32")
            sent = loop.train(jax.tree.unflatten(structure, parameters), mine, key)
            return jax.tree.leaves(sent), len(mine), {}

    class Timed(FedAvg):  # type: ignore[misc]
        def configure_fit(self, *given: Any, **named: Any) -> Any:
            begun.append(time.perf_counter())
            return super().configure_fit(*given, **named)

        def aggregate_fit(self, number: int, results: Any, failures: Any) -> Any:
            if failures:
                raise SystemExit(f"round {number}: {len(failures)} clients failed in Flower")
            return super().aggregate_fit(number, results, failures)

    draw = here.plan.draw

    def server(context: Context) -> ServerAppComponents:
        strategy = Timed(
            fraction_fit=draw.wanted / draw.clients, min_fit_clients=draw.wanted, min_available_clients=draw.clients,
            fraction_evaluate=0.0, initial_parameters=ndarrays_to_parameters(jax.tree.leaves(here.params)),
        )  # fmt: skip
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=WARMUP + options.rounds + 1))

    def client(context: Context) -> Any:
        return Client(int(context.node_config["partition-id"])).to_client()

    run_simulation(
        server_app=ServerApp(server_fn=server), client_app=ClientApp(client_fn=client), num_supernodes=draw.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}},
    )  # fmt: skip
    taken = sorted(b - a for a, b in zip(begun[WARMUP:], begun[WARMUP + 1 :], strict=False))
    return taken[len(taken) // 2], taken[0]
