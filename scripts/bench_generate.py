"""Tokens per second of generation, here and in Hugging Face transformers with its cache: one text, greedy.

nano: 4 layers, 128 wide, 4 heads, 65 tokens, random weights, 256 places. smollm2: the packaged weights in float32 (with
--smollm2). Both write the same number of tokens after the same prompt; compiling and loading are not counted.

    python scripts/bench_generate.py --smollm2
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import _bench

PROMPT, CONTEXT, VOCAB = 16, 256, 65


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="blocks of each candidate (default %(default)s)")
    parser.add_argument("--threads", type=int, default=_bench.cores(), help="cores to use (default: all)")
    parser.add_argument("--smollm2", action="store_true", help="the packaged model too")
    _bench.add_patience(parser)
    options = parser.parse_args()
    _bench.pin(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    _bench.print_facts("jax", "torch", "transformers")
    measure("nano", *nano(), tokens=200, target=3.0, options=options)
    if options.smollm2:
        measure("smollm2", *smollm2(), tokens=32, target=1.0, options=options)


def measure(name: str, ours: Any, theirs: Any, *, tokens: int, target: float, options: argparse.Namespace) -> None:
    """Print tokens per second of both, and their ratio."""
    candidates = {"bigctl": write_here(ours, tokens), "transformers": write_there(theirs, tokens)}
    samples = _bench.interleave(candidates, options.rounds, patience=options.patience)
    _bench.table(
        [name, "tokens/s, median", "best", "spread"],
        [[key, tokens / statistics.median(v), tokens / min(v), _bench.spread(v)] for key, v in samples.items()],
    )
    medians, minima, within = _bench.ratio(samples, "transformers", "bigctl")
    print(f"bigctl / transformers: {medians:.2f} (medians), {minima:.2f} (best blocks), {within:.2f} (within a round)")
    print(f"target {target:g}: {'met' if within >= target else 'MISSED'}\n", flush=True)


def write_here(model: Any, tokens: int) -> Callable[[], float]:
    from bigctl.generation.decoding import Batch
    from bigctl.generation.options import GenerationOptions

    def block() -> float:
        start = time.perf_counter()
        batch = Batch(model, [list(range(1, PROMPT + 1))], GenerationOptions(temperature=0, max_new_tokens=tokens))
        while batch.growing:
            batch.advance()
        assert len(batch.tokens[0]) == PROMPT + tokens
        return time.perf_counter() - start

    return block


def write_there(model: Any, tokens: int) -> Callable[[], float]:
    import torch

    prompt = torch.arange(1, PROMPT + 1)[None]
    rules = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "use_cache": True}

    def block() -> float:
        start = time.perf_counter()
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **rules)
        assert found.shape == (1, PROMPT + tokens)
        return time.perf_counter() - start

    return block


def nano() -> tuple[Any, Any]:
    """The model here and there; random weights take as long as others."""
    from flax import nnx
    from transformers import GPT2Config, GPT2LMHeadModel

    from bigctl.config import schema
    from bigctl.models.decoder import Decoder

    config = schema.Gpt(layers=4, width=128, heads=4, context=CONTEXT)
    sizes = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": CONTEXT, "vocab_size": VOCAB}
    theirs = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)).eval()
    return Decoder(config, VOCAB, rngs=nnx.Rngs(0)), theirs


def smollm2() -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    from bigctl.inference import language_models
    from bigctl.interop import sources

    file = sources.locate_source("smollm2").path
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name).eval()
    theirs.generation_config.eos_token_id = None
    return language_models.load_language_model("smollm2").model, theirs


if __name__ == "__main__":
    main()
