"""Training a small GPT against a plain torch version of the same model: `experiment=nanogpt_cpu`, on a text.

4 layers, 4 heads, 128 wide, block 64, batch 12, characters, tanh GELU, AdamW with clipping and nanoGPT's schedule,
float32. The first nine tenths of the text are trained on; the loss is that of the whole last tenth, in windows of 64.

steps: blocks of steps of all candidates, in turn, in one process; first that the same weights give the same loss is
checked. --learn: processes of their own, from the command to its end: 2,000 steps of the setting here and in torch, and
then the time until the validation loss is 1.88, in torch with the setting, here with `recipe=gpt_lm` and few steps.

    python scripts/bench_gpt.py input.txt --compile --learn
"""

from __future__ import annotations

import argparse
import json
import math
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

LAYERS, HEADS, WIDTH, BLOCK, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
WARMUP, FINAL, DECAY, B2 = 100, 0.1, 0.1, 0.99
GOAL, LOOK = 1.88, 100  # validation loss [nats a character]; how often torch computes it [steps]
FEW = 375  # steps that `recipe=gpt_lm` comes below that in, its schedule laid out for so many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="a text file, such as Tiny Shakespeare")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="steps of a block (default %(default)s)")
    parser.add_argument("--threads", type=int, default=_bench.cores(), help="cores for every candidate (default: all)")
    parser.add_argument("--compile", action="store_true", help="also torch.compile, which needs a C++ compiler")
    parser.add_argument("--learn", action="store_true", help="also train to the end, and to a loss of 1.88")
    _bench.add_patience(parser)
    parser.add_argument("--peer-lr", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--peer-goal", type=float, default=-math.inf, help=argparse.SUPPRESS)
    options = parser.parse_args()
    _bench.pin(options.threads)
    if options.peer_lr is not None:
        print("RESULT " + json.dumps(_learn_torch(options)))
        return
    _bench.print_facts("bigctl", "jax", "torch")
    _compare_steps(options)
    if options.learn:
        _compare_learning(options)


# ----------------------------------------------------------------------------------------------------------- the steps


def _compare_steps(options: argparse.Namespace) -> None:
    ours, data, weights, loss_here = _bigctl(options)  # first: jax is set up before torch's threads are there
    import torch

    torch.set_num_threads(options.threads)
    peer = _Peer(data.vocab, lr=1e-3)
    peer.load(weights)
    x, y = data.windows(np.arange(BATCH) * BLOCK)
    with torch.no_grad():
        loss_there = float(peer.loss(x, y))
    print(f"loss on equal weights and windows: bigctl {loss_here:.6f}, torch {loss_there:.6f}")
    if abs(loss_there - loss_here) > 1e-4:
        sys.exit("bench_gpt: the models differ; no comparison")
    candidates = {"bigctl": ours, "torch": _block(peer, data, options.steps)}
    if options.compile:
        candidates["torch, compiled"] = _block(_Peer(data.vocab, 1e-3, compiled=True), data, options.steps)
    samples = _bench.interleave(candidates, options.rounds, warmup=2, patience=options.patience)
    rows = []
    for name, values in samples.items():
        ms = [1e3 * value for value in values]
        ratios = _bench.ratio(samples, name, "bigctl")
        rows.append([name, statistics.median(ms), min(ms), 100 * _bench.spread(ms), *ratios])
    _bench.table(["ms/step", "median", "min", "spread %", "this/bigctl: medians", "minima", "in a round"], rows)
    ratio = _bench.ratio(samples, "torch", "bigctl")[2]
    print(f"steps/s of bigctl / torch: {ratio:.2f}, target 1: {'met' if ratio >= 1 else 'MISSED'}\n", flush=True)


def _bigctl(options: argparse.Namespace) -> tuple[Callable[[], float], _Text, dict[str, np.ndarray], float]:
    """A block of the real steps [s/step], the text, the initial weights, and their loss on its first windows."""
    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before jax, as `bigctl train` does

    import bigctl
    from bigctl.engine import experiment as experiments
    from bigctl.training import feed as feeds
    from bigctl.training.checkpoints import arrays as stored

    built = experiments.build(bigctl.compose(["experiment=nanogpt_cpu", *_data(options.text), "train.steps=1000000"]))
    columns = built.dataset.splits["train"]
    fresh, advance = built.programs.initialise(), _bench.stepper(built)
    weights = {name: np.array(leaf) for name, leaf in stored.flatten(fresh.params).items()}
    first = built.programs.step_resident(
        fresh,
        feeds.place_columns(built.programs.mesh, columns),
        np.arange(BATCH, dtype=np.int32) * BLOCK,
        built.programs.hparams,
        built.dataset.batches,
        BLOCK,
    )
    total, weight = np.asarray(first.sums["loss"], np.float64)

    def block() -> float:
        return _bench.seconds(lambda: advance(options.steps)) / options.steps

    splits = built.dataset.splits
    data = _Text(splits["train"]["inputs"], splits["validation"]["inputs"], built.task.vocabulary)
    return block, data, weights, float(total / weight)


def _block(peer: _Peer, data: _Text, steps: int) -> Callable[[], float]:
    def block() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            peer.step(data, 1.0)
        return (time.perf_counter() - start) / steps

    return block


# ------------------------------------------------------------------------------------------------------ the whole runs


def _compare_learning(options: argparse.Namespace) -> None:
    import bigctl

    lr = bigctl.compose(["experiment=nanogpt_cpu", *_data(options.text)]).optimizer.lr
    setting, own = "experiment=nanogpt_cpu", "recipe=gpt_lm"
    here, _ = _train_here(options, [setting])
    there = _train_there(options, lr, -math.inf)
    close = here <= there["loss"] + 0.01
    print(f"{STEPS} steps at a learning rate of {lr:g}: bigctl {here:.4f}, torch {there['loss']:.4f}")
    print(f"target {GOAL:g}: {'met' if here <= GOAL else 'MISSED'}; torch's + 0.01: {'met' if close else 'MISSED'}")
    loss, seconds = _train_here(options, [own, f"train.steps={FEW}", f"eval.every={FEW}", "recipe.sample_tokens=0"])
    torch = _train_there(options, lr, GOAL)
    print(
        f"until {GOAL:g}: bigctl {seconds:.1f} s ({FEW} steps, {loss:.3f}), "
        f"torch {torch['seconds']:.1f} s ({torch['steps']} steps, {torch['loss']:.3f})"
    )
    ratio = seconds / torch["seconds"]
    print(f"bigctl / torch: {ratio:.2f}, target 0.4: {'met' if ratio <= 0.4 and loss <= GOAL else 'MISSED'}")


def _train_here(options: argparse.Namespace, overrides: list[str]) -> tuple[float, float]:
    """Last validation loss, and seconds from the command to its end, of `bigctl train`."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bigctl", "train", *overrides, *_data(options.text.resolve())]
        start = time.perf_counter()
        done = subprocess.run([*command, "--run-dir", f"{folder}/run", "--quiet"], capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return [line["val/loss"] for line in lines if "val/loss" in line][-1], seconds


def _train_there(options: argparse.Namespace, lr: float, goal: float) -> dict[str, Any]:
    """The same of torch, in a process of its own."""
    command = [sys.executable, __file__, str(options.text), "--peer-lr", str(lr), f"--peer-goal={goal}"]
    start = time.perf_counter()
    done = subprocess.run([*command, "--threads", str(options.threads)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[7:])
    return {**found, "seconds": time.perf_counter() - start}


def _learn_torch(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    data = _Text.read(options.text)
    peer = _Peer(data.vocab, options.peer_lr)
    for step in range(STEPS):
        if step < WARMUP:
            factor = (step + 1) / WARMUP
        else:
            cosine = 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP)))
            factor = FINAL + (1 - FINAL) * cosine
        peer.step(data, factor)
        if options.peer_goal > 0 and (step + 1) % LOOK == 0 and peer.validation(data) <= options.peer_goal:
            break
    return {"loss": peer.validation(data), "steps": step + 1}


def _data(text: Path) -> list[str]:
    return ["data=text", f"data.path={text}", "data.validation_fraction=0.1", "data.test_fraction=0"]


# ---------------------------------------------------------------------------------------------------- the torch version


class _Text:
    """A text as numbers, one for each character: what is trained on, and what is held out."""

    def __init__(self, train: np.ndarray, validation: np.ndarray, vocab: int):
        self.train, self.validation, self.vocab = np.asarray(train, np.int64), np.asarray(validation, np.int64), vocab
        self.rng = np.random.default_rng(0)

    @classmethod
    def read(cls, path: Path) -> _Text:
        text = path.read_text(encoding="utf-8")
        characters = {character: number for number, character in enumerate(sorted(set(text)))}
        tokens = np.array([characters[character] for character in text])
        cut = int(0.9 * len(tokens))
        return cls(tokens[:cut], tokens[cut:], len(characters))

    def windows(self, starts: np.ndarray, *, validation: bool = False) -> Any:
        import torch

        tokens = self.validation if validation else self.train
        places = starts[:, None] + np.arange(BLOCK + 1)
        found = torch.from_numpy(tokens[places])
        return found[:, :-1], found[:, 1:]

    def draw(self) -> Any:
        return self.windows(self.rng.integers(0, len(self.train) - BLOCK, BATCH))


class _Peer:
    """GPT-2 (Radford et al. 2019) without biases, and its training step, as one would write them in torch."""

    def __init__(self, vocab: int, lr: float, *, compiled: bool = False):
        import torch

        self.torch, self.lr, self.vocab = torch, lr, vocab
        width = WIDTH
        shapes = {"token": (vocab, width), "position": (BLOCK, width), "norm": (width,)}
        for i in range(LAYERS):
            shapes |= {
                f"{i}/attention_norm": (width,), f"{i}/qkv": (3 * width, width), f"{i}/output": (width, width),
                f"{i}/mlp_norm": (width,), f"{i}/up": (4 * width, width), f"{i}/down": (width, 4 * width),
            }  # fmt: skip
        self.params = {}
        for name, shape in shapes.items():
            residual = name.endswith(("output", "down"))
            std = 0.02 / math.sqrt(2 * LAYERS) if residual else 0.02
            value = torch.ones(shape) if len(shape) == 1 else torch.randn(shape) * std
            self.params[name] = value.requires_grad_()
        matrices = [p for p in self.params.values() if p.dim() > 1]
        vectors = [p for p in self.params.values() if p.dim() == 1]
        groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, B2))
        self.loss = torch.compile(self._loss) if compiled else self._loss

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Take over bigctl's weights; its kernels are [in, out]."""
        torch = self.torch
        sources = {"token": ["token/embedding"], "position": ["position/embedding"], "norm": ["final_norm/scale"]}
        for i in range(LAYERS):
            attention = f"layers/{i}/attention"
            sources |= {
                f"{i}/attention_norm": [f"{attention}_norm/scale"],
                f"{i}/qkv": [f"{attention}/{part}/kernel" for part in ("query", "key", "value")],
                f"{i}/output": [f"{attention}/output/kernel"],
                f"{i}/mlp_norm": [f"layers/{i}/mlp_norm/scale"],
                f"{i}/up": [f"layers/{i}/up/kernel"],
                f"{i}/down": [f"layers/{i}/down/kernel"],
            }
        with torch.no_grad():
            for name, names in sources.items():
                parts = [weights[n].T if n.endswith("kernel") else weights[n] for n in names]
                value = np.concatenate(parts, 0)[: len(self.params[name])]  # bigctl pads the vocabulary
                self.params[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def _loss(self, x: Any, y: Any) -> Any:
        functional, params = self.torch.nn.functional, self.params
        batch, length = x.shape
        heads = (batch, length, HEADS, WIDTH // HEADS)
        h = params["token"][x] + params["position"][:length]
        for i in range(LAYERS):
            n = functional.layer_norm(h, (WIDTH,), params[f"{i}/attention_norm"])
            parts = functional.linear(n, params[f"{i}/qkv"]).split(WIDTH, -1)
            q, k, v = (part.view(heads).transpose(1, 2) for part in parts)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(h.shape)
            h = h + functional.linear(mixed, params[f"{i}/output"])
            n = functional.layer_norm(h, (WIDTH,), params[f"{i}/mlp_norm"])
            up = functional.gelu(functional.linear(n, params[f"{i}/up"]), approximate="tanh")
            h = h + functional.linear(up, params[f"{i}/down"])
        logits = functional.linear(functional.layer_norm(h, (WIDTH,), params["norm"]), params["token"])
        return functional.cross_entropy(logits.view(-1, self.vocab), y.reshape(-1))

    def step(self, data: _Text, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        x, y = data.draw()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss(x, y).backward()
        self.torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
        self.optimizer.step()

    def validation(self, data: _Text) -> float:
        """Mean loss over all whole windows of the held-out text."""
        starts = np.arange(0, len(data.validation) - BLOCK, BLOCK)
        total = 0.0
        with self.torch.no_grad():
            for first in range(0, len(starts), 256):
                x, y = data.windows(starts[first : first + 256], validation=True)
                total += float(self._loss(x, y)) * len(x)
        return total / len(starts)


if __name__ == "__main__":
    main()
