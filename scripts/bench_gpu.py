"""What one GPU does: speed and memory of training and decoding, against torch on the same card where torch is there.

Each case, and torch's beside it, runs in a process of its own with `--limit` seconds, so that one that fails or hangs
costs the others nothing. FLOPs are counted as `bigctl plan` counts them, MFU is their
share of the card's dense bfloat16 rate; memory is the peak that the allocator tells, beside what the compiler said
before the step ran. Data are noise, placed on the card, but for --mnist. Everything is in bfloat16 with float32
parameters.

cases, by part:
  language  gpt2          GPT-2 124M, windows of 1,024, AdamW: deterministic (the default) and not; torch.compile
            attention     forward and backward of one layer, 16 x 1,024 x 12 heads of 64, by kernel
            llama1b       a Llama of 1.2 billion parameters, windows of 2,048
            decode        tokens a second of one text, GPT-2 and the Llama, over those that reading the weights allows
  vision    resnet50      batches of 256 at 224 pixels; torchvision's with torch.compile
            speed_cnn     the network of airbench94 at 32 pixels, batches of 1,024
            bert          BERT base on 64 texts of 128 tokens; transformers' with torch.compile
            mnist         `bigctl train recipe=cnn_cls data=idx` to its end, with --mnist DIR
  settings  settings      GPT-2's step with other compiler options; for who decides on them
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _bench
import _gpu_peers
import _gpu_rows
from _gpu_rows import CARD, VOCAB, Row

EXAMPLES = """\
examples:
  python scripts/bench_gpu.py --part language --out language.json
  python scripts/bench_gpu.py --part vision --mnist DIR --out vision.json
  python scripts/bench_gpu.py --case gpt2 --case attention
"""
PARTS = {
    "language": ("gpt2", "attention", "llama1b", "decode"),
    "vision": ("resnet50", "speed_cnn", "bert", "mnist"),
    "settings": ("settings",),
}
GPT2 = ("model=gpt2", "optimizer=adamw", "optimizer.clip=1.0")
LLAMA = (
    "model=llama", "model.layers=16", "model.width=2048", "model.heads=32", "model.kv_heads=8",
    "model.intermediate=8192", "model.tied=true", "optimizer=adamw", "optimizer.clip=1.0",
)  # fmt: skip
"""Llama 3.2 1B (Meta 2024) but for its vocabulary, which is GPT-2's."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [name for cases in PARTS.values() for name in cases]
    parser.add_argument(
        "--part", choices=PARTS, action="append", default=[], help="may be repeated; default: language and vision"
    )
    parser.add_argument("--case", choices=names, action="append", default=[], help="instead of parts; may be repeated")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a block, about (default %(default)s)")
    parser.add_argument("--limit", type=float, default=240, help="seconds a case may take (default %(default)s)")
    parser.add_argument("--small", action="store_true", help="two layers and small batches, to try the script itself")
    parser.add_argument("--without-plan", action="store_true", help="no FLOPs and memory by the plan: one compile less")
    parser.add_argument("--mnist", type=Path, help="folder of MNIST's four IDX files")
    parser.add_argument("--out", type=Path, help="also write what was found as JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        for row in WORKERS[options.worker](options):
            print("ROW " + json.dumps(row), flush=True)
        return
    if not options.small and not _on_gpu():
        sys.exit("bench_gpu: jax finds no GPU here (bigctl doctor says why); --small tries the script on a CPU")
    _bench.print_facts("bigctl", "jax", "torch")
    chosen = options.case or [name for part in options.part or ("language", "vision") for name in PARTS[part]]
    if "mnist" in options.case and options.mnist is None:
        parser.error("--case mnist needs --mnist DIR")
    found: dict[str, Any] = {}
    for name in chosen:
        if name != "mnist" or options.mnist is not None:
            found[name] = _in_its_process(name, options)
            if name in _gpu_peers.CASES:
                found[name]["rows"] += _of_peer(name, options)
            if options.out:
                options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    keys = ("case", "what", "ms", "per_s", "unit", "tflops", "mfu", "peak_gb", "said_gb", "compile_s")
    rows = [[row.get(key, "") for key in keys] for each in found.values() for row in each["rows"]]
    _bench.table(("case", *keys[1:]), rows)
    for name, each in found.items():
        if each["error"]:
            print(f"{name}: {each['error']}")
    sys.exit(any(each["error"] for each in found.values()))


def _on_gpu() -> bool:
    asked = [sys.executable, "-c", "import jax; print(jax.devices()[0].platform)"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "gpu"


def _flags(options: argparse.Namespace) -> list[str]:
    return [f"--{name.replace('_', '-')}" for name in ("small", "without_plan") if getattr(options, name)]


def _in_its_process(name: str, options: argparse.Namespace) -> Row:
    passed = [f"--rounds={options.rounds}", f"--seconds={options.seconds}", *_flags(options)]
    passed += [f"--mnist={options.mnist}"] if options.mnist else []
    start = time.perf_counter()
    command = [sys.executable, __file__, "--worker", name, *passed]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        try:
            code: int | str = subprocess.run(command, stdout=out, stderr=err, timeout=options.limit).returncode
        except subprocess.TimeoutExpired:
            code = f"longer than {options.limit:g} s"
        out.seek(0)
        err.seek(0)
        rows = [{"case": name, **json.loads(line[4:])} for line in out if line.startswith("ROW ")]
        error = f"ended with {code}: {err.read()[-1500:]}" if code else ""
    for row in rows:
        print(json.dumps(row), flush=True)
    return {"rows": rows, "error": error, "seconds": time.perf_counter() - start}


def _of_peer(name: str, options: argparse.Namespace) -> list[Row]:
    """The rows of torch, with a time limit of its own; where it is not there, or fails, one that says so."""
    found = _in_its_process(f"torch-{name}", options)
    said = [{"what": f"torch {found['error'].splitlines()[-1][:150]}"}] if found["error"] else []
    return [{**row, "case": name} for row in [*found["rows"], *said]]


# -------------------------------------------------------------------------------------------------------- trainings


def _train(what: str, built: Any, unit: str, options: argparse.Namespace, *, plan_too: bool = True) -> Row:
    """A row about the steps of an experiment, as `bigctl train` makes them; beside them what the plan of it says."""
    import jax

    from bigctl.engine import plan

    start, said = time.perf_counter(), None
    if plan_too and not options.without_plan:
        traced, compiled, batch = plan.compiled_step(built)
        said = plan.of_experiment(built, traced, compiled, batch, plan.target_of(CARD))
    planned = time.perf_counter() - start
    advance = _bench.stepper(built)
    first = _bench.seconds(lambda: advance(1))
    taken = _gpu_rows.step_seconds(advance, options)
    stats = jax.devices()[0].memory_stats() or {}
    count = built.config.train.batch_size * (built.config.recipe.block or 1 if unit == "tokens" else 1)
    more: Row = {"compile_s": first, "peak_gb": stats.get("peak_bytes_in_use", 0) / 1e9}
    if said is not None:
        more |= {"said_gb": said.memory.peak / 1e9, "planned_s": planned}
    return _gpu_rows.row(what, taken, count, unit, 0.0 if said is None else said.flops_per_step, **more)


def _language(options: argparse.Namespace, folder: str, words: tuple[str, ...], *, batch: int, length: int) -> Any:
    import numpy as np

    import bigctl
    from bigctl.engine import experiment

    file = Path(folder) / "noise.bin"
    if not file.exists():
        np.random.default_rng(0).integers(0, VOCAB, 4_000_000).astype("<u2").tofile(file)
    small = ("model.layers=2", "model.width=64", "model.heads=4") if options.small else ()
    small += ("model.kv_heads=2", "model.intermediate=128") if small and "model=llama" in words else ()
    sizes = (f"recipe.block={length}", f"model.context={length}", f"train.batch_size={2 if small else batch}")
    data = (
        "data=tokens",
        f"data.path={file}",
        "recipe.tokenizer.type=ids",
        f"recipe.tokenizer.size={VOCAB}",
        "train.steps=100000",
    )
    fixed = ("recipe=gpt_lm", "train.precision=bfloat16", *data)
    return experiment.build(bigctl.compose([*fixed, *words[:2], *sizes, *words[2:], *small]))


# --------------------------------------------------------------------------------------------------- language models


def _gpt2(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for exact in ("true", "false"):
            words = (*GPT2, f"train.deterministic={exact}")
            built = _language(options, folder, words, batch=32, length=1024)
            yield _train(f"bigctl, deterministic={exact}", built, "tokens", options)


def _settings(options: argparse.Namespace) -> Iterator[Row]:
    from bigctl.parallel import accelerators

    exact = {"xla_gpu_deterministic_ops": True}
    variants = {
        "deterministic": exact,
        "deterministic, no Triton products": {**exact, "xla_gpu_enable_triton_gemm": False},
        "nothing left to chance but tuning": {"xla_gpu_exclude_nondeterministic_ops": True},
        "none": {},
        "none, no Triton products": {"xla_gpu_enable_triton_gemm": False},
        "none, no command buffers": {"xla_gpu_enable_command_buffer": ""},
        "none, latency-hiding scheduler": {"xla_gpu_enable_latency_hiding_scheduler": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, chosen in variants.items():
            accelerators.compiler_options = lambda platform, *, deterministic, chosen=chosen: chosen  # type: ignore[assignment]
            words = (*GPT2, f"train.deterministic={str(any('deterministic' in key for key in chosen)).lower()}")
            try:
                built = _language(options, folder, (*words, "model.layers=4"), batch=32, length=1024)
                yield _train(name, built, "tokens", options, plan_too=False)
            except Exception as error:  # an option that this jax does not know is a result too
                yield {"what": f"{name}: {str(error)[:100]}"}


def _llama(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        for scan in ("false", "true"):
            words = (*LLAMA, f"model.scan={scan}")
            built = _language(options, folder, words, batch=4, length=2048)
            yield _train("bigctl" + (", stacked layers" if scan == "true" else ""), built, "tokens", options)


def _attention(options: argparse.Namespace) -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import Mesh

    from bigctl.models import attention
    from bigctl.parallel import accelerators
    from bigctl.parallel import mesh as meshes

    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    shape = (2, 128, 4, 64) if options.small else (16, 1024, 12, 64)
    q, k, v = (jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i in range(3))

    def loss(kind: str, exact: bool) -> Callable[..., jax.Array]:
        def of(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            with meshes.used(mesh, deterministic=exact):
                if kind == "chosen":
                    out = attention.causal_attention(q, k, v)
                else:
                    out = jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="xla")
            return out.astype(jnp.float32).sum()

        return of

    flops = 6 * 2.0 * shape[0] * shape[2] * shape[1] ** 2 * shape[3]
    platform = mesh.devices.flat[0].platform
    own = attention.attention_kernel(platform, q.dtype)  # cudnn on a GPU
    for name, kind, exact in ((f"{own}, deterministic", "chosen", True), (own, "chosen", False), ("xla", "xla", False)):
        compiled = jax.jit(
            jax.grad(loss(kind, exact), (0, 1, 2)),
            compiler_options=accelerators.compiler_options(platform, deterministic=exact),
        )

        def advance(steps: int, run: Any = compiled) -> None:
            out = None
            for _ in range(steps):
                out = run(q, k, v)
            jax.block_until_ready(out)

        yield _gpu_rows.row(name, _gpu_rows.step_seconds(advance, options), shape[0] * shape[1], "tokens", flops)


def _decode(options: argparse.Namespace) -> Iterator[Row]:
    import jax
    import jax.numpy as jnp
    from flax import nnx

    import bigctl
    from bigctl.engine import plan
    from bigctl.generation.decoding import Batch
    from bigctl.generation.options import GenerationOptions
    from bigctl.models.decoder import Decoder

    tokens = 20 if options.small else 200
    for name, words in (("GPT-2 124M", GPT2), ("Llama 1B", LLAMA)):
        small = ("model.layers=2", "model.width=128", "model.heads=4", "model.kv_heads=null") if options.small else ()
        config = bigctl.compose(["recipe=gpt_lm", *words[:1], "model.context=1024", *words[1:], *small]).model
        for dtype in (jnp.float32, jnp.bfloat16):
            model = Decoder(config, VOCAB, rngs=nnx.Rngs(0))
            graph, state = nnx.split(model)
            state = jax.tree.map(lambda x, d=dtype: x.astype(d) if x.dtype == jnp.float32 else x, state)
            model, size = nnx.merge(graph, state), sum(x.nbytes for x in jax.tree.leaves(state))

            def advance(_: int, model: Any = model) -> None:
                batch = Batch(model, [list(range(1, 17))], GenerationOptions(temperature=0, max_new_tokens=tokens))
                while batch.growing:
                    batch.advance()

            advance(1)
            taken = statistics.median(_bench.seconds(lambda run=advance: run(1)) for _ in range(3)) / tokens
            bound = size / plan.target_of(CARD).chip.bandwidth
            yield _gpu_rows.row(f"{name}, {jnp.dtype(dtype).name}", taken, 1, "tokens", of_bound=bound / taken)


# ------------------------------------------------------------------------------------------------------------ others


def _resnet(options: argparse.Namespace) -> Iterator[Row]:
    batch, side = (4, 64) if options.small else (256, 224)
    dataset = _bench.synthetic("image", 8 * batch, (side, side, 3), 1000)
    fixed = ["recipe=resnet_cls", "model=resnet50", "optimizer=sgd", "train.precision=bfloat16", "train.steps=100000"]
    built = _bench.experiment([*fixed, f"train.batch_size={batch}"], dataset)
    yield _train("bigctl", built, "images", options)


def _speed_cnn(options: argparse.Namespace) -> Iterator[Row]:
    batch = 32 if options.small else 1024
    dataset = _bench.synthetic("image", 16 * batch, (32, 32, 3), 10)
    words = ["recipe=speed_cls", "train.precision=bfloat16", "train.steps=100000", f"train.batch_size={batch}"]
    yield _train("bigctl", _bench.experiment(words, dataset), "images", options)


def _bert(options: argparse.Namespace) -> Iterator[Row]:
    import numpy as np

    import bigctl
    from bigctl.engine import experiment

    batch, length = (4, 16) if options.small else (64, 128)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file, words = Path(folder) / "texts.tsv", [f"w{i}" for i in range(30_000)]
        lines = [f"{i % 2}\t{' '.join(rng.choice(words, length + 8))}" for i in range(20 * batch)]
        file.write_text("\n".join(["label\ttext", *lines]) + "\n", encoding="utf-8")
        keys = ["recipe=bert_cls", "model=bert_base", "data=tsv", f"data.path={file}", "data.label=label"]
        keys += [
            "data.text=text",
            "recipe.tokenizer.type=words",
            "recipe.tokenizer.size=30000",
            f"recipe.tokenizer.max_length={length}",
        ]
        keys += ["train.precision=bfloat16", f"train.batch_size={batch}"]
        keys += ["model.layers=2"] if options.small else []
        built = experiment.build(bigctl.compose([*keys, "train.steps=100000"]))
        yield _train("bigctl", built, "texts", options)


def _mnist(options: argparse.Namespace) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        words = ["recipe=cnn_cls", "data=idx", f"data.path={options.mnist.resolve()}", "train.precision=bfloat16"]
        command = [sys.executable, "-m", "bigctl", "train", *words, "--run-dir", f"{folder}/run", "--json", "--quiet"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            sys.exit(done.stderr[-1000:])
        scores = {key: value for key, value in json.loads(done.stdout).items() if isinstance(value, (int, float))}
        yield {"what": "from the command to its end", "ms": 1e3 * seconds, "scores": scores, "said": done.stdout[:1500]}


WORKERS: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "gpt2": _gpt2, "attention": _attention, "llama1b": _llama, "decode": _decode, "resnet50": _resnet,
    "speed_cnn": _speed_cnn, "bert": _bert, "mnist": _mnist, "settings": _settings,
    **{f"torch-{name}": peer for name, peer in _gpu_peers.CASES.items()},
}  # fmt: skip


if __name__ == "__main__":
    main()
