"""The loss of distillation against torch's Kullback-Leibler divergence, its gradient too."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from bigctl.recipes.classification import ClassHead, soft_losses

from bigctl.config import schema
from bigctl.training.task import TEACHER

torch = pytest.importorskip("torch")

RNG = np.random.default_rng(0)
STUDENT, TAUGHT = (RNG.normal(0, 3, (6, 5)).astype(np.float32) for _ in range(2))
LABELS = np.array([0, 4, 2, 1, 1, 3], np.int32)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 7.5])
def test_soft_targets_are_those_of_torch(temperature):
    logits = torch.tensor(STUDENT, requires_grad=True)
    said = torch.nn.functional.log_softmax(logits / temperature, -1)
    wanted = torch.nn.functional.softmax(torch.tensor(TAUGHT) / temperature, -1)
    each = torch.nn.functional.kl_div(said, wanted, reduction="none").sum(-1) * temperature**2
    each.sum().backward()
    np.testing.assert_allclose(soft_losses(STUDENT, TAUGHT, temperature), each.detach().numpy(), rtol=2e-5, atol=1e-6)
    gradient = jax.grad(lambda x: soft_losses(x, TAUGHT, temperature).sum())(STUDENT)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=2e-5, atol=1e-6)


def test_labels_and_teacher_are_weighed_by_alpha_and_classes_by_their_weights():
    weights, mask = [1.0, 2.0, 0.5, 1.0, 3.0], np.array([1, 1, 0, 1, 1, 1], np.float32)
    head = ClassHead(tuple("abcde"), weights, None).taught(schema.Distil("run", 3.0, 0.3))
    batch = {"label": LABELS, "mask": mask, TEACHER: TAUGHT}
    found = np.asarray(head.loss(STUDENT, batch, {"recipe.label_smoothing": 0.0})["loss"])
    hard = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights), reduction="none")(
        torch.tensor(STUDENT), torch.tensor(LABELS).long()
    )
    said = torch.nn.functional.log_softmax(torch.tensor(STUDENT) / 3, -1)
    wanted = torch.nn.functional.softmax(torch.tensor(TAUGHT) / 3, -1)
    soft = 9 * (wanted * (wanted.log() - said)).sum(-1) * torch.tensor(weights)[LABELS]
    expected = ((0.7 * hard + 0.3 * soft) * torch.tensor(mask)).sum()
    np.testing.assert_allclose(found[0], expected.item(), rtol=1e-5)
    np.testing.assert_allclose(found[1], np.array(weights)[LABELS][mask > 0].sum())
