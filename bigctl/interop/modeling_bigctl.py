"""BERT with a classifier on the first token, or on the mean of all tokens; with the pooler or without it.

`bigctl export` puts this file beside weights that no class of transformers computes as they were trained.
`AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)` finds it there.
"""

import torch
from transformers import BertModel, BertPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class BertForPooledClassification(BertPreTrainedModel):
    """`config.bigctl_pool` is "cls" or "mean"; `config.bigctl_pooler` says whether the pooler follows."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=config.bigctl_pooler)
        self.dropout = torch.nn.Dropout(config.classifier_dropout)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids=None, attention_mask=None, token_type_ids=None, labels=None, **kwargs):
        """Logits [batch, classes], and the cross-entropy where labels are given."""
        kwargs.pop("return_dict", None)
        outputs = self.bert(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, return_dict=True, **kwargs
        )
        pooled = self._pool(outputs.last_hidden_state, attention_mask)
        if self.bert.pooler is not None:
            pooled = self.bert.pooler(pooled[:, None])  # it takes the first vector of each text
        logits = self.classifier(self.dropout(pooled))
        several = self.config.problem_type == "multi_label_classification"
        losses = torch.nn.functional
        measure = losses.binary_cross_entropy_with_logits if several else losses.cross_entropy
        loss = None if labels is None else measure(logits, labels)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _pool(self, vectors, attention_mask):
        if self.config.bigctl_pool == "cls":
            return vectors[:, 0]
        if attention_mask is None:
            return vectors.mean(1)
        real = attention_mask[..., None].to(vectors.dtype)
        return (vectors * real).sum(1) / real.sum(1).clamp(min=1)
