"""Training speed of networks for pictures: bigctl's own step against torch on the same network.

bigctl runs what `bigctl train recipe=speed_cls` (or `resnet_cls model=resnet18`) runs, crops and flips off: gather from
the resident uint8 images, standardise, step, metrics. torch is handed finished float32 batches, in both of its memory
layouts, and keeps no metrics. Both are SGD with Nesterov's momentum, float32, in a process each; blocks of steps are
measured in turn, by the clock and by the time of the processor. Before that the loss on equal weights is compared for
speed_cnn and resnet18 (of 32 pixels), which are written here in torch. The others (128 pixels unless `--pixels` says
otherwise) are timm's, with as many parameters; that their logits are equal is held by tests/parity.
"""

from __future__ import annotations

import argparse
import json
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
  python scripts/bench_vision.py
  python scripts/bench_vision.py --net resnet18 --batch-size 32 --rounds 6 --steps 2
  python scripts/bench_vision.py --net vit_ti --net resnet50 --batch-size 16 --steps 2
"""

OWN = ("speed_cnn", "resnet18")
TIMM = {
    "resnet50": "resnet50", "vit_ti": "vit_tiny_patch16_224", "convnext_t": "convnext_tiny",
    "inception_v3": "inception_v3", "lite0": "efficientnet_lite0",
}  # fmt: skip
BATCHES = 4
MEAN, STD = 0.5, 0.29  # of the synthetic images, in [0, 1]
WIDTHS, FACTOR = (32, 64, 128), 1 / 9  # of speed_cnn

Block = Callable[[int], Any]
Made = tuple[dict[str, Block], Callable[[str], tuple[int, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--net", choices=(*OWN, *TIMM), action="append", help=f"may be repeated; default {' and '.join(OWN)}"
    )
    parser.add_argument("--pixels", type=int, help="of timm's networks; default 128")
    parser.add_argument("--batch-size", type=int, default=128, help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--steps", type=int, default=4, help="steps of a block (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="cores for both (default %(default)s)")
    parser.add_argument("--worker", choices=("bigctl", "torch"), help=argparse.SUPPRESS)
    _bench.add_patience(parser)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    _bench.print_facts("bigctl", "jax", "flax", "torch")
    for net in options.net or OWN:
        _compare(net, options)


def _compare(net: str, options: argparse.Namespace) -> None:
    workers = [_Worker(name, net, options) for name in ("bigctl", "torch")]
    try:
        variants = [worker.read()["variants"] for worker in workers]
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "weights.npz")
            found = [worker.ask({"check": path}) for worker in workers]
        if found[0]["parameters"] != found[1]["parameters"] or abs(found[0]["loss"] - found[1]["loss"]) > 1e-3:
            sys.exit(f"bench_vision: the networks differ, no comparison: {found}")
        loss = f", loss {found[0]['loss']:.4f}" if net in OWN else ""
        side = _side(net, options)
        print(f"{net}, {side} pixels, batch {options.batch_size}: {found[0]['parameters']:,} parameters{loss}")
        processor: dict[str, list[float]] = {}
        blocks = {
            name: (lambda w=worker, n=name: w.measure(n, options.steps, processor))  # type: ignore[misc]
            for worker, names in zip(workers, variants, strict=True)
            for name in names
        }
        samples = _bench.interleave(blocks, options.rounds, patience=options.patience)
    finally:
        for worker in workers:
            worker.close()
    for what, values in (("wall", samples), ("processor", processor)):
        rows = [
            [name, 1e3 * statistics.median(each), 1e3 * min(each), *_bench.ratio(values, name, "bigctl")]
            for name, each in values.items()
        ]
        _bench.table([f"ms/step, {what}", "median", "min", "this/bigctl: medians", "minima", "in a round"], rows)


def _side(net: str, options: argparse.Namespace) -> int:
    return 32 if net in OWN else options.pixels or 128


class _Worker:
    """A candidate in a process of its own."""

    def __init__(self, name: str, net: str, options: argparse.Namespace):
        command = [sys.executable, __file__, "--worker", name, "--net", net, "--threads", str(options.threads)]
        command += ["--batch-size", str(options.batch_size), "--pixels", str(_side(net, options))]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, question: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return self.read()

    def read(self) -> Any:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit("bench_vision: a worker ended, see above")

    def measure(self, variant: str, steps: int, processor: dict[str, list[float]]) -> float:
        found = self.ask({"variant": variant, "steps": steps})
        processor.setdefault(variant, []).append(found["processor"] / steps)
        return float(found["wall"]) / steps

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


# -------------------------------------------------------------------------------------------------------- the workers


def _work(options: argparse.Namespace) -> None:
    _bench.pin(options.threads)
    make = _bigctl if options.worker == "bigctl" else _torch
    variants, check = make(options.net[0], options.batch_size, options.threads, options.pixels)
    for block in variants.values():
        block(2)
    print(json.dumps({"variants": list(variants)}), flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "check" in question:
            parameters, loss = check(question["check"])
            answer: dict[str, Any] = {"parameters": parameters, "loss": loss}
        else:
            wall, processor = time.perf_counter(), time.process_time()
            variants[question["variant"]](question["steps"])
            answer = {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor}
        print(json.dumps(answer), flush=True)


def _bigctl(net: str, batch_size: int, threads: int, side: int) -> Made:
    from bigctl.parallel import host_memory

    host_memory.keep_memory()  # before jax, as `bigctl train` does

    from bigctl.training import feed as feeds
    from bigctl.training.checkpoints import arrays as stored

    dataset = _bench.synthetic("image", BATCHES * batch_size, (side, side, 3))
    chosen = ["recipe=speed_cls", f"model.widths={list(WIDTHS)}", "optimizer.norm_bias_factor=1"]
    if net == "resnet18":
        chosen = ["recipe=resnet_cls", "model=resnet18", "model.zero_init=false"]
    elif net in TIMM:
        chosen = ["recipe=resnet_cls", f"model={net}", *(["model.dropout=0"] if net == "inception_v3" else [])]
    chosen += ["recipe.augment.crop=0", "recipe.augment.flip=none", "recipe.label_smoothing=0"]
    chosen += ["train.steps=1000000", f"train.batch_size={batch_size}"]
    built = _bench.experiment(chosen, dataset)
    train = _bench.stepper(built)

    def check(path: str) -> tuple[int, float]:
        """Save the initial weights, and give their loss on the first examples, out of the real step."""
        fresh = built.programs.initialise()
        params = {name: np.asarray(leaf) for name, leaf in stored.flatten(fresh.params).items()}
        if net in TIMM:
            return sum(leaf.size for leaf in params.values()), 0.0
        whitening = {} if net == "resnet18" else {"whiten/kernel": np.asarray(fresh.variables["whiten"]["kernel"])}
        np.savez(path, **params, **whitening)  # type: ignore[arg-type]
        arrays = feeds.place_columns(built.programs.mesh, dataset.splits["train"])
        indices, layout = np.arange(batch_size, dtype=np.int32), built.dataset.batches
        after = built.programs.step_resident(fresh, arrays, indices, built.programs.hparams, layout, None)
        total, weight = np.asarray(after.sums["loss"], np.float64)
        return sum(leaf.size for leaf in params.values()), float(total / weight)

    return {"bigctl": train}, check


def _torch(net: str, batch_size: int, threads: int, side: int) -> Made:
    import torch
    import torch.nn.functional as functional

    torch.set_num_threads(threads)
    columns = _bench.synthetic("image", BATCHES * batch_size, (side, side, 3)).splits["train"]
    images = torch.from_numpy((columns["inputs"].astype(np.float32) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
    targets = torch.from_numpy(columns["label"].astype(np.int64)).split(batch_size)

    def variant(layout: torch.memory_format) -> Block:
        model = _torch_net(net, side).to(memory_format=layout)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.85, nesterov=True, weight_decay=5e-4, fused=True)
        xs = [x.contiguous(memory_format=layout) for x in images.split(batch_size)]

        def train(steps: int) -> None:
            for step in range(steps):
                optimizer.zero_grad(set_to_none=True)
                functional.cross_entropy(model(xs[step % BATCHES]), targets[step % BATCHES]).backward()
                optimizer.step()

        return train

    def check(path: str) -> tuple[int, float]:
        model = _torch_net(net, side)
        if net in TIMM:
            return sum(p.numel() for p in model.parameters()), 0.0
        given = np.load(path)
        for name, parameter in _places(net, model).items():
            value = given[name]
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(value)))
        with torch.no_grad():
            loss = functional.cross_entropy(model(images[:batch_size]), targets[0])
        return sum(p.numel() for p in model.parameters() if p.requires_grad), float(loss)

    return {
        "torch": variant(torch.contiguous_format),
        "torch, channels_last": variant(torch.channels_last),
    }, check


def _torch_net(net: str, side: int) -> Any:
    from torch import nn

    if net in TIMM:
        import timm

        sized = {"img_size": side} if net == "vit_ti" else {}
        return timm.create_model(TIMM[net], num_classes=10, **sized)
    if net == "resnet18":
        return _torch_resnet()

    class Scaled(nn.Linear):
        def forward(self, x: Any) -> Any:
            return FACTOR * super().forward(x)

    def norm(width: int) -> nn.Module:
        made = nn.BatchNorm2d(width, momentum=0.4)
        made.weight.requires_grad = False
        return made

    inputs = 24
    layers: list[nn.Module] = [nn.Conv2d(3, inputs, 2), nn.GELU(approximate="tanh")]
    layers[0].weight.requires_grad = False  # type: ignore[union-attr]
    for width in WIDTHS:
        layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.MaxPool2d(2), norm(width)]
        layers += [nn.GELU(approximate="tanh"), nn.Conv2d(width, width, 3, padding=1, bias=False), norm(width)]
        layers.append(nn.GELU(approximate="tanh"))
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scaled(inputs, 10, bias=False))


def _torch_resnet() -> Any:
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            self.downsample = None
            if stride != 1:
                projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
            return torch.relu(y + (x if self.downsample is None else self.downsample(x)))

    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    layers += [Residual(a, b, 1 if a == b else 2) for a, b in zip(widths, widths[1:], strict=False)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def _places(net: str, model: Any) -> dict[str, Any]:
    """Where bigctl's weights, by path, belong in torch's network."""
    if net == "speed_cnn":
        found = {"whiten/kernel": model[0].weight, "whiten/bias": model[0].bias, "head/kernel": model[-1].weight}
        for number in range(len(WIDTHS)):
            first, first_norm, second, second_norm = (model[2 + 7 * number + place] for place in (0, 2, 4, 5))
            found |= {f"groups/{number}/first": first.weight, f"groups/{number}/second": second.weight}
            found |= {f"groups/{number}/{n}_norm/bias": m.bias for n, m in (("first", first_norm),
                                                                            ("second", second_norm))}  # fmt: skip
        return found
    pairs = [("stem", model[0], model[1])]
    for number, block in enumerate(model[3:-3]):
        pairs += [(f"blocks/{number}/convs/{i}", getattr(block, f"conv{i + 1}"), getattr(block, f"bn{i + 1}"))
                  for i in range(2)]  # fmt: skip
        if block.downsample is not None:
            pairs.append((f"blocks/{number}/shortcut", *block.downsample))
    found = {"head/kernel": model[-1].weight, "head/bias": model[-1].bias}
    for path, conv, norm in pairs:
        found |= {f"{path}/kernel": conv.weight, f"{path}/norm/scale": norm.weight, f"{path}/norm/bias": norm.bias}
    return found


if __name__ == "__main__":
    main()
