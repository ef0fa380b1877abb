"""Keys of distillation: a student learns from what a trained run says of its examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bigctl.config.schema.base import STRUCTURAL, Checked, Problem, Whole, key


@dataclass
class Distil(Checked):
    """Soft targets (Hinton, Vinyals & Dean 2015, arXiv 1503.02531)."""

    teacher: str | None = key(
        None, "A run whose probabilities are learnt besides the labels; null for none.", drift=STRUCTURAL
    )
    temperature: float = key(
        2.0, "What the logits of teacher and student are divided by before they are compared.", gt=0
    )
    alpha: float = key(0.5, "Share of the teacher in the loss; the rest is that of the labels.", ge=0, le=1)

    hidden: float = key(
        0.0, "Weight of how far the vectors of each token point away from the teacher's, 1 - cosine, in the last layer "
        "of two BERTs of one width and tokenizer (Sanh et al. 2019).", ge=0,
    )  # fmt: skip

    def check(self, config: Whole) -> Iterator[Problem]:
        if self.teacher is not None and not config.recipe.taught:
            what = f"recipe={config.recipe.kind} cannot be taught by another run"
            yield "distil.teacher", what, "leave it out; gpt_lm and recipes of one class an example can"
        if self.hidden and self.teacher is None:
            yield "distil.hidden", "distil.hidden compares with a teacher, and there is none", "name distil.teacher=RUN"
        elif self.hidden and (config.model.kind != "bert" or config.recipe.inputs != "texts"):
            what = f"distil.hidden is for model=bert and classes of texts, this is model={config.model.kind}"
            yield "distil.hidden", what, "leave it out"
