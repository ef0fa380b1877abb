"""Integrated gradients here, and by hand in torch on a BERT of transformers with the same weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.inference.explaining import gradients
from bigctl.models.bert import BertClassifier
from tests.parity import cases

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

IDS, KEPT = np.array([2, 17, 5, 40, 9, 33, 3]), np.array([1, 0, 0, 0, 0, 0, 1], bool)


def test_integrated_gradients_are_those_of_torch() -> None:
    from tests.parity import reference

    config = schema.Bert(layers=2, width=24, heads=4, intermediate=50, positions=40, vocab=61, pooler=True)
    torch.manual_seed(0)
    net = reference._classifier(config, 3)
    reference._spread(net)
    table = net.get_input_embeddings().weight.detach()
    ids, blank = torch.tensor(IDS), torch.tensor(np.where(KEPT, IDS, 0))
    total, steps = torch.zeros(len(IDS), 24), 1000  # by rectangles, at their middles
    for place in (torch.arange(steps) + 0.5).div(steps).split(250):
        vectors = (table[blank] + place[:, None, None] * (table[ids] - table[blank])).requires_grad_()
        net(inputs_embeds=vectors).logits[:, 1].sum().backward()
        total += vectors.grad.sum(0) / steps
    wanted = ((table[ids] - table[blank]) * total).sum(-1).numpy()
    both = net(input_ids=torch.stack([ids, blank])).logits[:, 1]
    both.sum().backward()  # the reference keeps gradients beside weights
    scores = both.tolist()
    names = {name: our for name, our in reference._bert_names(config) if reference._has(net, name)}
    weights = reference._parameters(net, names)
    model = BertClassifier(config, 61, 3, rngs=cases._rngs())
    structure, params, rest = cases.filled(model, weights)
    model = nnx.merge(structure, params, rest)
    tokens, size = jnp.asarray(IDS[None], jnp.int32), jnp.array([len(IDS)], jnp.int32)
    end = np.asarray(model.look_up(tokens)[0])
    start = np.where(KEPT[:, None], end, np.asarray(model.blank(tokens, 0)[0]))

    @jax.jit
    def along(places: jax.Array, weights: jax.Array) -> jax.Array:
        def score(vectors: jax.Array) -> jax.Array:
            many = [jnp.repeat(each, len(vectors), 0) for each in (tokens, size, size)]
            return jnp.vdot(jnp.asarray(weights, jnp.float32), model(*many, vectors=vectors)[:, 1])

        return jax.grad(score)(start + jnp.asarray(places, jnp.float32)[:, None, None] * (end - start)).sum(0)

    found = gradients.integrated(along, start, end, scores[0] - scores[1])
    assert found.complete and np.abs(wanted).max() > 0.1
    np.testing.assert_allclose(found.values.sum(-1), wanted, atol=1e-4)
