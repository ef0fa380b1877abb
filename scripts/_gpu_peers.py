"""The same trainings in torch, for `bench_gpu`: as one would write them for a GPU, with torch.compile, autocast to
bfloat16 and a fused AdamW. Each is a case in a process of its own, as both want most of the card's memory."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any

import _gpu_rows
from _gpu_rows import Row


def _steps(what: str, loss: Callable[[], Any], model: Any, count: int, unit: str, options: Any) -> Row:
    """A row about AdamW steps of a model with float32 parameters."""
    import torch

    rule = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())

    def advance(steps: int) -> None:
        for _ in range(steps):
            rule.zero_grad(set_to_none=True)
            with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", torch.bfloat16):
                value = loss()
            value.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            rule.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    start = time.perf_counter()
    advance(2)
    compiling = time.perf_counter() - start
    taken = _gpu_rows.step_seconds(advance, options)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    return _gpu_rows.row(what, taken, count, unit, peak_gb=peak, compile_s=compiling)


def _device() -> str:
    import torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"


def _gpt2(options: argparse.Namespace) -> Iterator[Row]:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    where, batch = _device(), 2 if options.small else 32
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4} if options.small else {}
    config = GPT2Config(
        **sizes,
        vocab_size=50_304,
        attn_implementation="sdpa",
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config).to(where)
    ids = torch.randint(0, _gpu_rows.VOCAB, (batch, 1024), device=where)
    compiled = torch.compile(model)
    yield _steps(
        "torch.compile, transformers' GPT-2",
        lambda: compiled(ids, labels=ids).loss,
        model,
        batch * 1024,
        "tokens",
        options,
    )


def _resnet50(options: argparse.Namespace) -> Iterator[Row]:
    import torch
    from torchvision.models import resnet50

    where, (batch, side) = _device(), (4, 64) if options.small else (256, 224)
    model = resnet50().to(where, memory_format=torch.channels_last)
    images = torch.randn(batch, 3, side, side, device=where).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (batch,), device=where)
    compiled = torch.compile(model)

    def loss() -> Any:
        return torch.nn.functional.cross_entropy(compiled(images), labels)

    yield _steps("torch.compile, torchvision's, channels last, finished images", loss, model, batch, "images", options)


def _bert(options: argparse.Namespace) -> Iterator[Row]:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    where, (batch, length) = _device(), (4, 16) if options.small else (64, 128)
    layers = {"num_hidden_layers": 2} if options.small else {}
    model = BertForSequenceClassification(BertConfig(vocab_size=30_000, **layers)).to(where)
    ids, labels = torch.randint(5, 30_000, (batch, length), device=where), torch.randint(0, 2, (batch,), device=where)
    mask = torch.ones_like(ids)
    compiled = torch.compile(model)
    yield _steps(
        "torch.compile, transformers' BERT",
        lambda: compiled(input_ids=ids, attention_mask=mask, labels=labels).loss,
        model, batch, "texts", options,
    )  # fmt: skip


def _attention(options: argparse.Namespace) -> Iterator[Row]:
    import torch

    where, shape = _device(), (2, 4, 128, 64) if options.small else (16, 12, 1024, 64)
    q, k, v = (torch.randn(shape, device=where, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))

    def advance(steps: int) -> None:
        for _ in range(steps):
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).sum().backward()
        if where == "cuda":
            torch.cuda.synchronize()

    flops = 6 * 2.0 * shape[0] * shape[1] * shape[2] ** 2 * shape[3]
    yield _gpu_rows.row("torch's", _gpu_rows.step_seconds(advance, options), shape[0] * shape[2], "tokens", flops)


CASES: dict[str, Callable[[argparse.Namespace], Iterator[Row]]] = {
    "gpt2": _gpt2, "attention": _attention, "resnet50": _resnet50, "bert": _bert,
}  # fmt: skip
"""By the case of ours that they stand beside."""
