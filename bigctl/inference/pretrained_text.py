"""Language models of pretrained weights, as others or bigctl wrote them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bigctl.data.text import stream_encoding, tokenization
from bigctl.errors import DataError
from bigctl.generation.generate import LanguageModel
from bigctl.inference.run_text import template_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bigctl.config import schema
    from bigctl.generation.slot_programs import Network
    from bigctl.interop.sources import Source

_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>")
"""What the end of an answer is called, beside the names of the end of a document in `stream_encoding.END`."""


def pretrained_language_model(source: Source) -> LanguageModel:
    """Raises DataError if the weights are of no language model, or have no tokenizer."""
    from bigctl.config import schema
    from bigctl.engine import compile_cache
    from bigctl.interop import sources

    kinds: dict[str, type[schema.Model]] = {"gpt": schema.Gpt, "llama": schema.Llama}
    if source.model not in kinds:
        raise DataError(
            f"holds weights of model={source.model}, which writes no text",
            where=source.name,
            hint="use a GPT or a Llama",
        )
    if source.tokenizer is None:
        file = f"tok{source.architecture['vocab']}.bin" if source.format == "llama2c" else "tokenizer.json"
        raise DataError("has no tokenizer", where=source.name, hint=f"put its {file} into the folder")
    compile_cache.use_compile_cache()
    tokenizer = tokenization.load_tokenizer(source.tokenizer, stream=True)
    config = sources.fill_architecture(kinds[source.model](init_from=source.name), source)
    model = _with_weights(config, source, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    return LanguageModel(
        model,
        tokenizer,
        end=source.generation_config.ends or _ends(tokenizer),
        start=_start(tokenizer),
        template=source.generation_config.chat_template,
        template_tokens=template_tokens(tokenizer, source.generation_config),
        name=source.name,
    )


def _with_weights(config: schema.Model, source: Source, vocab_size: int) -> Network:
    """The model, of which nothing is initialised that the weights have."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from bigctl.interop import loading
    from bigctl.parallel import partition

    shapes = nnx.eval_shape(lambda: config.build(vocab_size, rngs=nnx.Rngs(0)))
    graphdef, found, rest = nnx.split(shapes, nnx.Param, ...)  # type: ignore[misc]
    params = nnx.to_pure_dict(found)
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    values, missing, _ = loading.load_weights(source, {partition.path_name(path): leaf.shape for path, leaf in leaves})
    if missing:
        raise DataError(
            f"has no weights for {missing[0]}", where=source.name, hint="use weights of a whole language model"
        )
    filled = jax.tree_util.tree_map_with_path(lambda path, _: jnp.asarray(values[partition.path_name(path)]), params)
    # What is left are dropout rates, which only training reads.
    rest = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
    network: Network = nnx.merge(graphdef, filled, rest)
    return network


def _ends(tokenizer: Tokenizer) -> tuple[int, ...]:
    """End tokens by what they are called, for weights that do not say."""
    numbers = map(tokenizer.token_to_id, (*stream_encoding.END, *_TURN_ENDS))
    return tuple(number for number in numbers if number is not None)


def _start(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What the tokenizer puts before a text."""
    encoding = tokenizer.encode("a", add_special_tokens=True)
    first = next((place for place, special in enumerate(encoding.special_tokens_mask) if not special), 0)
    return tuple(encoding.ids[:first])
