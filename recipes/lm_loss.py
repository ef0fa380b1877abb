"""Cross-entropy of the next token, made in pieces, so that all logits of a large vocabulary are never there at once.

Dimension names: batch, length, width, vocab (padded); a piece is [batch, some of length, vocab], so that a batch, or a
vocabulary, that is shared out over devices stays so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bigctl.parallel import mesh as meshes
from bigctl.training.task import ExportedModel

_PIECES = {"gpu": 2**28, "tpu": 2**27}
_PIECE = 2**24
"""Logits made at once, where `chunk` does not say: 64 MiB of float32 on CPUs, a gigabyte on GPUs, where the sums of the
gradient of the output, read and written with each piece, are what costs; half of that on TPUs, unmeasured."""
_MASKED = -1e30


class LossSums(NamedTuple):
    """Sums over all tokens, float32, each counted by its weight.

    Attributes:
        total: what is minimised, cross-entropy plus `z_loss` times the squared logarithm of the partition function.
        cross_entropy: [nats]; no gradient flows through it.
        weight: of the tokens.
    """

    total: Float[Array, ""]
    cross_entropy: Float[Array, ""]
    weight: Float[Array, ""]


def loss_sums(
    hidden: Float[Array, "batch length width"],
    head_kernel: Float[Array, "width vocab"],
    targets: Int[Array, "batch length"],
    weights: Float[Array, "batch length"],
    vocab_size: int,
    z_loss: float | jax.Array = 0.0,
    chunk: int | None = None,
) -> LossSums:
    """Summed cross-entropy of `targets` under the logits hidden @ head_kernel; equal to the plain one, gradients too.

    The gradient is made together with the loss, while a piece of the logits is there, so that no piece is made twice.

    Args:
        hidden: vectors of the last layer.
        head_kernel: weights of the output; its columns from `vocab_size` on only pad.
        targets: the next token at each place.
        weights: what each place counts, 0 where it is padding.
        vocab_size: tokens.
        z_loss: weight of log(Z)^2, which keeps logits from drifting (Chowdhery et al. 2022, with 1e-4); may be traced.
        chunk: places of each row in a piece; None for pieces of at most 2^24 logits on each device, 2^28 on GPUs and
            2^27 on TPUs.
    """
    batch, length, _ = hidden.shape
    shards = meshes.token_shards_in_use(length)
    table = meshes.placed(head_kernel.T, "tensor")
    pieces = _pieces(length // shards[1], chunk, batch // shards[0] * len(table))
    total, cross_entropy = _sums(
        meshes.placed(hidden, "batch", "context"),
        table,
        targets,
        weights.astype(jnp.float32),
        jnp.float32(z_loss),
        vocab_size,
        pieces,
        shards,
    )
    return LossSums(total, jax.lax.stop_gradient(cross_entropy), jnp.sum(weights, dtype=jnp.float32))


def _pieces(length: int, chunk: int | None, logits: int) -> int:
    """Into how many pieces a text, or a device's part of it, is cut; `logits` are those of one place of a batch."""
    if chunk is None:
        chunk = max(1, _PIECES.get(meshes.platform_in_use() or "", _PIECE) // max(1, logits))
    return -(-length // max(1, min(chunk, length)))


def exported_logits(
    model: ExportedModel, columns: Mapping[str, np.ndarray], vocab_size: int
) -> Iterator[tuple[slice, np.ndarray]]:
    """What an exported model says of some texts, float32 [some, length, vocab], some rows at a time: it gives all
    logits at once."""
    count, length = columns["inputs"].shape
    some = max(1, _PIECE // max(1, length * vocab_size))
    for start in range(0, count, some):
        rows = slice(start, min(count, start + some))
        yield rows, model({name: values[rows] for name, values in columns.items()})["logits"]


def token_losses(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-entropy of each target under its logits [..., vocab], float64 [...]."""
    shifted = logits - logits.max(-1, keepdims=True)
    wanted = np.take_along_axis(shifted, targets[..., None], -1)[..., 0]
    return np.asarray(np.log(np.exp(shifted).sum(-1, dtype=np.float64)) - wanted)


class Spoken(NamedTuple):
    """What a language model says: vectors of its last layer, weights of its output, and how many tokens it knows, those
    of its columns that do not pad."""

    hidden: Float[Array, "batch length width"]
    head_kernel: Float[Array, "width vocab"]
    vocab_size: int


def soft_sum(
    student: Spoken,
    teacher: Spoken,
    weights: Float[Array, "batch length"],
    temperature: float,
    chunk: int | None = None,
) -> Float[Array, ""]:
    """Summed T^2 KL(teacher || student) over the tokens that both know, each softened by the temperature T (Hinton et
    al. 2015); no gradient flows to the teacher.

    A piece of either's logits is there at once, and made anew for the gradient. `weights` and `chunk` are as for
    `loss_sums`.
    """
    batch, length, _ = student.hidden.shape
    known = min(student.vocab_size, teacher.vocab_size)
    shards = meshes.token_shards_in_use(length)
    pieces = _pieces(length // shards[1], chunk, 2 * (batch // shards[0]) * student.head_kernel.shape[1])

    @jax.checkpoint
    def add(total: Array, piece: tuple[Array, Array, Array]) -> tuple[Array, None]:
        said, wanted, weight = piece

        def logs(some: Array, spoken: Spoken) -> Array:
            logits = jnp.matmul(some, spoken.head_kernel, preferred_element_type=jnp.float32)
            logits = meshes.placed(logits, "batch", "context", "tensor")
            logits = jnp.where(jnp.arange(logits.shape[-1]) < known, logits / temperature, _MASKED)
            return jax.nn.log_softmax(logits)[..., : min(student.head_kernel.shape[1], teacher.head_kernel.shape[1])]

        ours, theirs = logs(said, student), jax.lax.stop_gradient(logs(wanted, teacher))
        return total + temperature**2 * jnp.sum(weight * jnp.sum(jnp.exp(theirs) * (theirs - ours), -1)), None

    arrays = student.hidden, jax.lax.stop_gradient(teacher.hidden), weights.astype(jnp.float32)
    total, _ = _scan(add, jnp.float32(0), arrays, pieces, shards[1])
    return total


@partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _sums(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    z_loss: Array,
    vocab_size: int,
    pieces: int,
    shards: tuple[int, int],
) -> tuple[Array, Array]:
    def add(sums: tuple[Array, Array], piece: tuple[Array, Array, Array]) -> tuple[tuple[Array, Array], None]:
        _, _, total, plain = _piece(table.T, *piece, z_loss, vocab_size)
        return (sums[0] + total, sums[1] + plain), None

    start = (jnp.float32(0), jnp.float32(0))
    return _scan(add, start, (hidden, targets, weights), pieces, shards[1])[0]


def _forward(
    hidden: Array,
    table: Array,
    targets: Array,
    weights: Array,
    z_loss: Array,
    vocab_size: int,
    pieces: int,
    shards: tuple[int, int],
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    def add(carry: tuple[Array, Array, Array], piece: tuple[Array, Array, Array]) -> tuple[Any, Array]:
        some, wanted, weight = piece
        logits, log_z, total, plain = _piece(table.T, some, wanted, weight, z_loss, vocab_size)
        slope = weight * (1 + 2 * z_loss * log_z)
        columns = jnp.arange(len(table))
        d_logits = jnp.exp(logits - log_z[..., None]) * slope[..., None]
        d_logits = jnp.where(columns == wanted[..., None], d_logits - weight[..., None], d_logits).astype(some.dtype)
        d_some = (d_logits @ table).astype(some.dtype)
        rows, d_rows = (meshes.by_shard(x, shards) for x in (some, d_logits))
        added = jax.lax.dot_general(d_rows, rows, (((1,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)
        return (carry[0] + total, carry[1] + plain, meshes.placed(carry[2] + added, "tokens", "tensor")), d_some

    # Each part of the batch has a sum of its own, so that devices add theirs up once and not after each piece.
    parts = meshes.placed(jnp.zeros((math.prod(shards), *table.shape), jnp.float32), "tokens", "tensor")
    (total, plain, parts), d_hidden = _scan(
        add, (jnp.float32(0), jnp.float32(0), parts), (hidden, targets, weights), pieces, shards[1]
    )
    return (total, plain), (d_hidden, parts.astype(table.dtype))


def _backward(
    vocab_size: int, pieces: int, shards: tuple[int, int], saved: tuple[Array, Array], slopes: tuple[Array, Array]
) -> tuple[Array | None, ...]:
    """Parts are added up last: where the table is also that of the tokens, XLA adds them to the parts of its gradient
    there, and devices send each other one sum in place of two."""
    d_hidden, parts = (d * slopes[0].astype(d.dtype) for d in saved)
    return d_hidden, meshes.summed(parts, "tensor", "fsdp"), None, None, None


_sums.defvjp(_forward, _backward)


def _piece(
    kernel: Array, hidden: Array, targets: Array, weights: Array, z_loss: Array, vocab_size: int
) -> tuple[Array, Array, Array, Array]:
    """Logits float32 [batch, some, vocab], log Z [batch, some], and the two sums."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    logits = meshes.placed(logits, "batch", "context", "tensor")
    columns = jnp.arange(kernel.shape[1])
    if vocab_size < kernel.shape[1]:
        logits = jnp.where(columns < vocab_size, logits, _MASKED)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    # Not a gather: where the vocabulary is shared out, each device looks in its own part.
    wanted = jnp.sum(jnp.where(columns == targets[..., None], logits, 0.0), axis=-1)
    plain = jnp.sum(weights * (log_z - wanted))
    return logits, log_z, plain + z_loss * jnp.sum(weights * jnp.square(log_z)), plain


def _scan(function: Any, start: Any, arrays: tuple[Array, ...], pieces: int, cuts: int) -> tuple[Any, Any]:
    """Like `lax.scan` over `pieces` pieces of the second axis, padded with zeros; results are joined along it. Where it
    is cut over devices, into `cuts` parts, a piece has some of each."""
    if pieces == 1:
        return function(start, arrays)
    batch, length = arrays[0].shape[0], arrays[0].shape[1] // cuts
    some = -(-length // pieces)

    def cut(array: Array) -> Array:
        rest = array.shape[2:]
        array = array.reshape(batch, cuts, length, *rest)
        padded = jnp.pad(array, [(0, 0), (0, 0), (0, pieces * some - length), *((0, 0) for _ in rest)])
        cut = jnp.moveaxis(padded.reshape(batch, cuts, pieces, some, *rest), 2, 0)
        return cut.reshape(pieces, batch, cuts * some, *rest)

    carry, parts = jax.lax.scan(function, start, tuple(cut(array) for array in arrays))
    if parts is None:
        return carry, None
    rest = parts.shape[3:]
    joined = jnp.moveaxis(parts.reshape(pieces, batch, cuts, some, *rest), 0, 2)
    return carry, joined.reshape(batch, cuts, pieces * some, *rest)[:, :, :length].reshape(batch, cuts * length, *rest)
