"""Training speed of the convolutional network: bigctl's own step against torch and Keras on the same model.

Conv 32 3x3 - pool - Conv 64 3x3 - pool - Dense 128 - 10, relu, AdamW, float32, images 28x28. bigctl runs what
`bigctl train recipe=cnn_cls` runs, augmentation off: gather from the resident uint8 images, standardise, step, metrics.
The peers are handed finished float32 batches, standardised and in their own layout, and keep no metrics but the loss.

Every framework is a process of its own; blocks of steps are measured in turn. First the models are compared: number of
parameters, and the loss on the same weights and the same batch. Peers that are not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _bench
import numpy as np

EXAMPLES = """\
examples:
  python scripts/bench_cnn.py
  python scripts/bench_cnn.py --padding same --batch-size 64 --rounds 20
  python scripts/bench_cnn.py --peer-python other-environment/bin/python
"""

WORKERS = {"bigctl": "jax", "torch": "torch", "keras-jax": "jax", "keras-torch": "torch"}
"""Candidate -> the package besides its own that it cannot do without."""
BATCHES = 20
MEAN, STD = 0.5, 0.29  # of the synthetic images, in [0, 1]

Block = Callable[[int], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--padding", choices=("valid", "same"), action="append", help="may be repeated; default valid")
    parser.add_argument("--batch-size", type=int, action="append", help="may be repeated; default 128 and 64")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps of a block (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores for every candidate (default %(default)s)")
    parser.add_argument("--peers", nargs="*", choices=[w for w in WORKERS if w != "bigctl"], help="default: all")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch and keras")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    _bench.add_patience(parser)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    _bench.print_facts("bigctl", "jax", "flax", "torch", "keras")
    for padding in options.padding or ["valid"]:
        for batch_size in options.batch_size or [128, 64]:
            _compare(padding, batch_size, options)


# ------------------------------------------------------------------------------------------------------ the measuring


def _compare(padding: str, batch_size: int, options: argparse.Namespace) -> None:
    wanted = ["bigctl", *(options.peers if options.peers is not None else [w for w in WORKERS if w != "bigctl"])]
    workers = [_Worker(name, padding, batch_size, options) for name in wanted]
    try:
        workers = [worker for worker in workers if worker.ready()]
        if not workers or workers[0].name != "bigctl":
            sys.exit("bench_cnn: bigctl itself did not start")
        print(f"padding {padding}, batch {batch_size}; {options.rounds} blocks of {options.steps} steps")
        _check_models(workers)
        blocks = {
            variant: (lambda w=worker, v=variant: w.measure(v, options.steps))  # type: ignore[misc]
            for worker in workers
            for variant in worker.variants
        }
        samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    finally:
        for worker in workers:
            worker.close()
    rows = []
    for name in sorted(samples, key=lambda n: statistics.median(samples[n])):
        ms = [1e3 * v for v in samples[name]]
        ratios = _bench.ratio(samples, name, "bigctl")
        rows.append([name, statistics.median(ms), min(ms), 100 * _bench.spread(ms), *ratios])
    _bench.table(["ms/step", "median", "min", "spread %", "this/bigctl: medians", "minima", "in a round"], rows)
    peers = [name for name in samples if name != "bigctl"]
    if peers:
        by_median = min(peers, key=lambda n: statistics.median(samples[n]))
        by_minimum = min(peers, key=lambda n: min(samples[n]))
        print(
            f"fastest peer / bigctl: {_bench.ratio(samples, by_median, 'bigctl')[0]:.2f} by medians ({by_median}), "
            f"{_bench.ratio(samples, by_minimum, 'bigctl')[1]:.2f} by minima ({by_minimum})\n",
            flush=True,
        )


def _check_models(workers: list[_Worker]) -> None:
    """The same number of parameters everywhere, and the same loss on bigctl's weights; a note for each."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "weights.npz")
        own = workers[0].ask({"check": path})
        for worker in workers[1:]:
            other = worker.ask({"check": path})
            same = other["parameters"] == own["parameters"] and abs(other["loss"] - own["loss"]) < 1e-4
            print(
                f"  {worker.name}: {other['parameters']:,} parameters, loss {other['loss']:.6f} on equal weights; "
                f"bigctl: {own['parameters']:,}, {own['loss']:.6f}: {'the same model' if same else 'ANOTHER MODEL'}"
            )
            if not same:
                sys.exit("bench_cnn: the models differ; no comparison")
    print(flush=True)


class _Worker:
    """A candidate in a process of its own, which is told a variant and a number of steps and answers seconds."""

    def __init__(self, name: str, padding: str, batch_size: int, options: argparse.Namespace):
        python = sys.executable if name == "bigctl" else options.peer_python
        command = [python, __file__, "--worker", name, "--padding", padding, "--batch-size", str(batch_size)]
        command += ["--threads", str(options.threads), *(["--compile"] if options.compile else [])]
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if name.startswith("keras-"):
            environment["KERAS_BACKEND"] = name.removeprefix("keras-")
        self.name = name
        self.variants: list[str] = []
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ready(self) -> bool:
        answer = self._read()
        if answer is None:
            assert self.process.stderr is not None
            lines = self.process.stderr.read().strip().splitlines()
            print(f"  {self.name} is left out: {lines[-1] if lines else 'it ended'}")
            return False
        self.variants = answer["variants"]
        return True

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self._read()
        if answer is None:
            assert self.process.stderr is not None
            sys.exit(f"bench_cnn: {self.name} ended:\n{self.process.stderr.read()[-2000:]}")
        return answer

    def measure(self, variant: str, steps: int) -> float:
        return float(self.ask({"variant": variant, "steps": steps})["seconds"]) / steps

    def _read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # anything else is what some library had to say
                return json.loads(line)
        return None

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()


# -------------------------------------------------------------------------------------------------------- the workers


def _work(options: argparse.Namespace) -> None:
    _bench.pin(options.threads)
    padding, batch_size = options.padding[0], options.batch_size[0]
    if options.worker == "bigctl":
        variants, check = _bigctl(padding, batch_size)
    elif options.worker == "torch":
        variants, check = _torch(padding, batch_size, options.threads, options.compile)
    else:
        variants, check = _keras(padding, batch_size, options.threads)
    for block in variants.values():
        block(3)
    print(json.dumps({"variants": list(variants)}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "check" in question:
            parameters, loss = check(question["check"])
            answer = {"parameters": parameters, "loss": loss}
        else:
            start = time.perf_counter()
            variants[question["variant"]](question["steps"])
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)


def _examples(batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    columns = _bench.synthetic("image", BATCHES * batch_size).splits["train"]
    return columns["inputs"], columns["label"]


def _standardised(images: np.ndarray) -> np.ndarray:
    return ((images.astype(np.float32) / 255.0 - MEAN) / STD).astype(np.float32)


def _bigctl(padding: str, batch_size: int) -> tuple[dict[str, Block], Callable[[str], tuple[int, float]]]:
    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before jax, as `bigctl train` does

    from bigctl.training import feed as feeds
    from bigctl.training.checkpoints import arrays as stored

    dataset = _bench.synthetic("image", BATCHES * batch_size)
    overrides = [f"recipe.augment.{name}=0" for name in ("rotate", "scale", "shift")]
    overrides += ["optimizer=adamw", "train.steps=1000000", f"train.batch_size={batch_size}"]
    built = _bench.experiment(["recipe=cnn_cls", f"model.padding={padding}", *overrides], dataset)
    train = _bench.stepper(built)

    def check(path: str) -> tuple[int, float]:
        """Save the initial weights, and give their loss on the first examples, out of the real step."""
        fresh = built.programs.initialise()
        params = {name: np.asarray(leaf) for name, leaf in stored.flatten(fresh.params).items()}
        np.savez(path, **params)  # type: ignore[arg-type]
        arrays = feeds.place_columns(built.programs.mesh, dataset.splits["train"])
        indices = np.arange(batch_size, dtype=np.int32)
        after = built.programs.step_resident(
            fresh, arrays, indices, built.programs.hparams, built.dataset.batches, None
        )
        total, weight = np.asarray(after.sums["loss"], np.float64)
        return sum(leaf.size for leaf in params.values()), float(total / weight)

    return {"bigctl": train}, check


def _weights(path: str) -> list[np.ndarray]:
    """Kernel and bias of each layer, in order: convolutions [row, column, in, out], dense layers [in, out]."""
    found = np.load(path)
    modules = sorted({name.rsplit("/", 1)[0] for name in found.files}, key=lambda name: (name == "head", name))
    return [found[f"{module}/{part}"] for module in modules for part in ("kernel", "bias")]


def _torch(
    padding: str, batch_size: int, threads: int, compiled: bool
) -> tuple[dict[str, Block], Callable[[str], tuple[int, float]]]:
    import torch
    import torch.nn.functional as functional
    from torch import nn

    torch.set_num_threads(threads)
    inputs, labels = _examples(batch_size)
    images = torch.from_numpy(_standardised(inputs)).permute(0, 3, 1, 2).contiguous()
    targets = torch.from_numpy(labels.astype(np.int64))
    side, pad = (7, 1) if padding == "same" else (5, 0)

    def network() -> nn.Sequential:
        return nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=pad), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=pad), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            *(nn.Linear(64 * side * side, 128), nn.ReLU(), nn.Linear(128, 10)),
        )

    def variant(layout: torch.memory_format, *, fused: bool, compiled: bool = False) -> Block:
        model = network().to(memory_format=layout)  # type: ignore[call-overload]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=fused)
        forward = torch.compile(model) if compiled else model
        xs = [x.contiguous(memory_format=layout) for x in images.split(batch_size)]
        ys = targets.split(batch_size)

        def train(steps: int) -> None:
            for step in range(steps):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(forward(xs[step % BATCHES]), ys[step % BATCHES]).backward()
                optimizer.step()

        return train

    def check(path: str) -> tuple[int, float]:
        model = network()
        values = [torch.from_numpy(np.array(w)) for w in _weights(path)]
        for i in (0, 2):
            values[i] = values[i].permute(3, 2, 0, 1)
        # Ours flattens [height, width, channel], torch [channel, height, width].
        values[4] = values[4].reshape(side, side, 64, 128).permute(3, 2, 0, 1).reshape(128, -1)
        values[6] = values[6].T
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.copy_(value)
            loss = functional.cross_entropy(model(images[:batch_size]), targets[:batch_size])
        return sum(p.numel() for p in model.parameters()), float(loss)

    plain, last = torch.contiguous_format, torch.channels_last
    variants = {
        "torch": variant(plain, fused=False),
        "torch, fused": variant(plain, fused=True),
        "torch, channels_last": variant(last, fused=False),
        "torch, channels_last, fused": variant(last, fused=True),
    }
    if compiled:
        variants["torch.compile, channels_last, fused"] = variant(last, fused=True, compiled=True)
    return variants, check


def _keras(padding: str, batch_size: int, threads: int) -> tuple[dict[str, Block], Callable[[str], tuple[int, float]]]:
    import keras
    from keras import layers

    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        torch.set_num_threads(threads)
    inputs, labels = _examples(batch_size)
    images = _standardised(inputs)
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, padding=padding, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, padding=padding, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3, weight_decay=0.01), loss=loss)

    def fit(steps: int) -> None:
        for start in range(0, steps, BATCHES):
            count = min(BATCHES, steps - start) * batch_size
            model.fit(images[:count], labels[:count], batch_size=batch_size, verbose=0, shuffle=False)

    def by_batch(steps: int) -> None:
        for step in range(steps):
            rows = slice((step % BATCHES) * batch_size, (step % BATCHES + 1) * batch_size)
            model.train_on_batch(images[rows], labels[rows])

    def check(path: str) -> tuple[int, float]:
        before = model.get_weights()
        model.set_weights(_weights(path))
        found = model.evaluate(images[:batch_size], labels[:batch_size], batch_size=batch_size, verbose=0)
        model.set_weights(before)
        return model.count_params(), float(found)

    return {f"keras {backend}, fit": fit, f"keras {backend}, train_on_batch": by_batch}, check


if __name__ == "__main__":
    main()
