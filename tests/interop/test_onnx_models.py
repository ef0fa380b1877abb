"""Promise of the ONNX converter: every model of ours gives the same logits in onnxruntime, trained or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from bigctl.config import schema
from bigctl.models.bag import BagClassifier
from bigctl.models.bert import BertClassifier
from bigctl.models.cnn import CNN
from bigctl.models.convnext import Convnext
from bigctl.models.decoder import Decoder
from bigctl.models.efficientnet import EfficientNet
from bigctl.models.lstm import LstmClassifier
from bigctl.models.resnet import Resnet
from bigctl.models.speed_cnn import SpeedCnn
from bigctl.models.vit import Vit

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from bigctl.inference.exporters.onnx_model import Loaded
from bigctl.interop.onnx.convert import to_onnx

pytestmark = pytest.mark.fewer

BERT = {"layers": 1, "width": 16, "heads": 2, "intermediate": 24, "positions": 32}
LM = {"layers": 2, "width": 16, "heads": 2, "context": 32}
LLAMA = {"position": "rope", "norm": "rms", "activation": "swiglu", "bias": False, "tied": False, "kv_heads": 1}
GPT = {"position": "learned", "norm": "layer", "activation": "gelu_tanh", "bias": True, "tied": True}
PICTURE = (20, 20, 3)

TEXTS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "bert": lambda r: BertClassifier(schema.Bert(**BERT), 50, 3, rngs=r),
    "bert mean": lambda r: BertClassifier(schema.Bert(**BERT, pool="mean", pooler=False), 50, 3, rngs=r),
    "bert tags": lambda r: BertClassifier(schema.Bert(**BERT), 50, 3, per_token=True, rngs=r),
    "lstm": lambda r: LstmClassifier(schema.Lstm(embedding=8, hidden=8, layers=2, bidirectional=True), 50, 3, rngs=r),
    "lstm max": lambda r: LstmClassifier(schema.Lstm(embedding=8, hidden=8, pool="max"), 50, 3, rngs=r),
    "lstm runs": lambda r: LstmClassifier(schema.Lstm(embedding=8, hidden=8, ngrams=3, ngram_rows=97), 50, 3, rngs=r),
    "bag": lambda r: BagClassifier(schema.Bag(width=8, pool="norm"), 50, 3, rngs=r),
}
STREAMS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "gpt": lambda r: Decoder(schema.Decoder(**LM, **GPT), 50, rngs=r),
    "llama": lambda r: Decoder(schema.Decoder(**LM, **LLAMA), 50, rngs=r),
    "stacked": lambda r: Decoder(schema.Decoder(**LM, **LLAMA, scan=True), 50, rngs=r),
}
IMAGES: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "cnn": lambda r: CNN(schema.Cnn(norm="batch", activation="gelu"), PICTURE, 3, rngs=r),
    "resnet": lambda r: Resnet(schema.Resnet(blocks=[1, 1], width=8), PICTURE, 3, rngs=r),
    "bottlenecks": lambda r: Resnet(
        schema.Resnet(blocks=[1, 1], width=8, bottleneck=True, stem="imagenet"), PICTURE, 3, rngs=r
    ),
    "convnext": lambda r: Convnext(schema.Convnext(blocks=[1, 1], widths=[8, 12], patch=2), PICTURE, 3, rngs=r),
    "lite0": lambda r: EfficientNet(schema.EfficientNet(width=0.1, depth=0.5), PICTURE, 3, rngs=r),
    "speed_cnn": lambda r: SpeedCnn(schema.SpeedCnn(widths=[8, 8, 8]), PICTURE, 3, rngs=r),
    "vit": lambda r: Vit(schema.Vit(layers=1, width=16, heads=2, intermediate=24, patch=4), PICTURE, 3, rngs=r),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TEXTS, *STREAMS, *IMAGES])
def test_every_model_gives_the_same_logits_in_onnxruntime(name):
    rng = np.random.default_rng(0)
    structure, state = nnx.split({**TEXTS, **STREAMS, **IMAGES}[name](nnx.Rngs(0)))
    leaves, tree = jax.tree_util.tree_flatten(state)
    # All random, so that what is lost is noticed; and positive, as variances are.
    weights = {f"w{i:03}": np.abs(rng.normal(size=np.shape(x)) * 0.2 + 0.3).astype(np.float32) if np.ndim(x) == 1
               else (rng.normal(size=np.shape(x)) * 0.3).astype(np.float32) for i, x in enumerate(leaves)}  # fmt: skip

    def function(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        model: Any = nnx.merge(structure, jax.tree_util.tree_unflatten(tree, [weights[k] for k in sorted(weights)]))
        if name in STREAMS:
            return {"logits": model.logits(model(inputs["inputs"]))[..., :50]}
        return {"logits": model(*(inputs[key] for key in ("inputs", "lengths", "segment_start") if key in inputs))}

    batch, length = export.symbolic_shape("batch, length", constraints=["length <= 32"])
    if name in IMAGES:
        inputs = {"inputs": rng.normal(size=(3, *PICTURE)).astype(np.float32)}
        shapes = {"inputs": jax.ShapeDtypeStruct((batch, *PICTURE), jnp.float32)}
    else:
        inputs = {"inputs": rng.integers(0, 50, (3, 11)).astype(np.int32)}
        shapes = {"inputs": jax.ShapeDtypeStruct((batch, length), jnp.int32)}
        if name in TEXTS:
            inputs |= {"lengths": np.array([11, 4, 1], np.int32), "segment_start": np.array([5, 4, 1], np.int32)}
            shapes |= dict.fromkeys(("lengths", "segment_start"), jax.ShapeDtypeStruct((batch,), jnp.int32))
    loaded = Loaded(to_onnx(function, weights, shapes).SerializeToString())
    for rows in (slice(None), slice(1, 2)):
        given = {key: values[rows] for key, values in inputs.items()}
        expected, found = np.asarray(jax.jit(function)(weights, given)["logits"]), loaded(given)["logits"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
