"""Vision transformers (Dosovitskiy et al. 2020): an image as a sequence of patches.

Dimension names: batch, height, width (of the image), channels, length (tokens: class token and registers, then patches
row by row), features (of the residual stream), heads, depth (features of a head).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from bigctl.config import schema
from bigctl.errors import ConfigError
from bigctl.models.attention import full_attention
from bigctl.models.bert import LayerNorm
from bigctl.models.depth import made, named, through
from bigctl.models.layers import Dense, DropPath, QuickDropout, fold
from bigctl.models.ops import gelu
from bigctl.parallel import mesh as meshes


class Attention(nnx.Module):
    """Multi-head self-attention (Vaswani et al. 2017), each token over all of them."""

    def __init__(self, features: int, heads: int, depth: int | None = None, *, rngs: nnx.Rngs):
        self.heads, self.depth = heads, depth or features // heads
        wide = heads * self.depth
        self.query, self.key, self.value = (Dense(features, wide, rngs=rngs) for _ in range(3))
        self.output = Dense(wide, features, rngs=rngs)

    def __call__(self, x: Float[Array, "batch length features"]) -> Float[Array, "batch length features"]:
        split = (*x.shape[:2], self.heads, self.depth)
        q, k, v = (named(layer(x).reshape(split), "projected") for layer in (self.query, self.key, self.value))
        mixed = named(full_attention(q, k, v), "attended")
        return self.output(mixed.reshape(*x.shape[:2], self.heads * self.depth))


class Layer(nnx.Module):
    """Attention, then the feed-forward part; each reads the normalised stream and adds to it."""

    def __init__(self, config: schema.Vit, share: float, *, rngs: nnx.Rngs):
        features = config.width
        self.attention_norm, self.mlp_norm = LayerNorm(features, config.eps), LayerNorm(features, config.eps)
        self.attention = Attention(features, config.heads, config.head_dim, rngs=rngs)
        self.up = Dense(features, config.intermediate, rngs=rngs)
        self.down = Dense(config.intermediate, features, rngs=rngs)
        self.dropout, self.drop_path = QuickDropout(config.dropout), DropPath(config.drop_path, share)

    def __call__(
        self, x: Float[Array, "batch length features"], key: Array | None, share: Float[Array, ""] | None = None
    ) -> Float[Array, "batch length features"]:
        """What the layer gives; `share` stands in place of that of its `DropPath`."""
        added = self.dropout(self.attention(self.attention_norm(x)), fold(key, 0))
        x = named(meshes.placed(x + self.drop_path(added, fold(key, 1), share), "batch"), "stream")
        added = self.dropout(self._fed_forward(x), fold(key, 2))
        return meshes.placed(x + self.drop_path(added, fold(key, 3), share), "batch")

    def inspect(
        self, x: Float[Array, "batch length features"], added: Float[Array, "batch patches features"]
    ) -> tuple[Array, Array]:
        """What the layer gives, and the patches that its attention reads plus `added`, of which it is computed."""
        normal = self.attention_norm(x)
        first = x.shape[1] - added.shape[1]
        read = normal[:, first:] + added
        x = x + self.attention(jnp.concatenate([normal[:, :first], read], axis=1))
        return x + self._fed_forward(x), read

    def _fed_forward(self, x: Array) -> Array:
        return self.down(gelu(self.up(self.mlp_norm(x))))


class Vit(nnx.Module):
    """Patches, projected, with their places; layers; the class token or the mean over patches; a linear output.

    Args:
        config: sizes, what stands for the image, how places are told.
        shape: [height, width, channels] of one image. Images of other whole numbers of patches get the places of theirs
            between those of this one's.
        outputs: number of logits.

    Raises:
        ConfigError: if the image is no whole number of patches.
    """

    def __init__(self, config: schema.Vit, shape: Sequence[int], outputs: int, *, rngs: nnx.Rngs):
        patch, features = config.patch, config.width
        if shape[0] % patch or shape[1] % patch:
            fitting = math.gcd(math.gcd(shape[0], shape[1]), 16)
            if fitting == min(shape[:2]):  # one patch would be all there is
                fitting = max(fitting // 2, 1)
            raise ConfigError(
                f"images of {shape[0]}x{shape[1]} are no whole number of patches of {patch}x{patch}",
                where="model.patch",
                hint=f"choose a divisor, such as {fitting}, or another data.image_size",
            )
        self.grid = rows, columns = shape[0] // patch, shape[1] // patch
        self.patch, self.pool = patch, config.pool
        self.remat, self.scan, self.count = config.remat, config.scan, config.layers
        self.embed = Dense(patch * patch * shape[2], features, rngs=rngs)
        std = 0.02
        self.cls = nnx.Param(std * jax.random.normal(rngs.params(), (1, features))) if self.pool == "cls" else None
        self.registers = (
            nnx.Param(std * jax.random.normal(rngs.params(), (config.registers, features)))
            if config.registers
            else None
        )
        places = rows * columns + (self.cls is not None)
        learned = config.position == "learned"
        self.position = nnx.Param(std * jax.random.normal(rngs.params(), (places, features))) if learned else None
        self.dropout = QuickDropout(config.dropout)
        last = max(config.layers - 1, 1)
        self.layers = made(lambda i, rngs: Layer(config, i / last, rngs=rngs), config.layers, rngs)
        self.final_norm = LayerNorm(features, config.eps)
        self.head = Dense(features, outputs, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channels"], *, key: Array | None = None, mask: Array | None = None
    ) -> Float[Array, "batch outputs"]:
        x = meshes.placed(self.dropout(self._tokens(x), fold(key, 0)), "batch")
        last = max(self.count - 1, 1)
        shares = jnp.asarray([number / last for number in range(self.count)], jnp.float32)
        x, _ = through(
            self.layers,
            x,
            self.count,
            lambda number: (fold(key, number + 1), shares[number] if self.scan else None),
            lambda layer, x, own: (layer(x, *own), None),
            scan=self.scan,
            remat=self.remat,
        )
        return self._judged(x)

    def inspect(self, x: Float[Array, "batch height width channels"], added: Array) -> tuple[Array, Array]:
        """Logits, and the patches [batch, rows, columns, features] that the last attention reads plus `added`, from
        which they are computed: what comes out of that layer is read at the class token alone."""
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        x = self._tokens(x)
        *below, last = self.layers
        for layer in below:
            x = layer(x, None)
        added = jnp.broadcast_to(added, (len(x), rows, columns, x.shape[2]))
        x, read = last.inspect(x, added.reshape(len(x), rows * columns, -1))
        return self._judged(x), read.reshape(added.shape)

    def filters(self) -> Float[Array, "rows columns channels filters"]:
        """Weights of the projection of a patch."""
        kernel = self.embed.kernel[...]
        return kernel.reshape(self.patch, self.patch, -1, kernel.shape[1])

    def _judged(self, x: Array) -> Array:
        x = self.final_norm(x)
        extra = 0 if self.registers is None else len(self.registers[...])
        return self.head(x[:, 0] if self.cls is not None else x[:, extra:].mean(1, dtype=jnp.float32).astype(x.dtype))

    def _tokens(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch length features"]:
        batch, height, width, channels = x.shape
        rows, columns = height // self.patch, width // self.patch
        cells = x.reshape(batch, rows, self.patch, columns, self.patch, channels).swapaxes(2, 3)
        x = self.embed(cells.reshape(batch, rows * columns, -1))
        table = None if self.position is None else self.position[...]
        first = 0 if self.cls is None else 1
        places = jnp.asarray(sincos(*self.grid, x.shape[2]), x.dtype) if table is None else table[first:]
        x = x + resampled(places, self.grid, (rows, columns))
        parts = []
        if self.cls is not None:  # fixed places tell nothing of a token that has none
            parts.append(self.cls[...] if table is None else self.cls[...] + table[:1])
        if self.registers is not None:
            parts.append(self.registers[...])
        shared = [jnp.broadcast_to(part, (batch, *part.shape)) for part in parts]
        return jnp.concatenate([*shared, x], axis=1) if shared else x


def resampled(
    table: Float[Array, "places features"], grid: tuple[int, int], wanted: tuple[int, int]
) -> Float[Array, "places2 features"]:
    """Places on a grid of (rows, columns) as those of another grid over the whole picture: bicubic, antialiased, as
    timm's `resample_abs_pos_embed` has it."""
    if grid == wanted:
        return table
    whole = table.astype(jnp.float32).reshape(*grid, -1)
    return jax.image.resize(whole, (*wanted, whole.shape[2]), "cubic").reshape(-1, whole.shape[2]).astype(table.dtype)


def sincos(rows: int, columns: int, features: int) -> np.ndarray:
    """Places on a grid, float32 [rows * columns, features] (Beyer et al. 2022).

    Sines, then cosines, of the column, then of the row, at features / 4 wave lengths from 2 pi to 10000 times that.
    """
    quarter = features // 4
    waves = 1 / 10000 ** (np.arange(quarter) / max(quarter - 1, 1))
    row, column = (place.reshape(-1, 1) * waves for place in np.mgrid[:rows, :columns])
    return np.concatenate([np.sin(column), np.cos(column), np.sin(row), np.cos(row)], axis=1).astype(np.float32)
