"""Classification of texts, or of pairs of them, as bags of n-grams."""

from __future__ import annotations

from bigctl.recipes.text_cls import TextCls, require_text
from flax import nnx


class NgramCls(TextCls):
    """As of any text; its model is told besides how rare the n-grams are, where that is known."""

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        groups = require_text(self.features, "ngram_cls").get("groups") or ()
        return self.model_config.build(self.vocabulary, self.head.outputs, groups=groups, rngs=rngs)
