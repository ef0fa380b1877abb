"""Promise of `bigctl export --format hf`: `transformers` loads the folder and gives the same logits."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bigctl.config import schema
from bigctl.data.text import encoding, tokenization
from bigctl.inference.trained import TrainedRun
from bigctl.interop import bert, huggingface, loading, sources
from bigctl.models.architecture import bert_architecture
from bigctl.models.bert import BertClassifier, BertMaskedLM
from bigctl.training.checkpoints.arrays import flatten
from tests.interop import builders

pytestmark = pytest.mark.optimized

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["a good film", "bad", "", "a a a a bads film good unheard-of words and a very very long end of the text"]
PAIRS = ["goods", "a film a film a film a film", "bad film", "a"]
CLASSES = ("bad", "so so", "good")
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(autouse=True)
def _modules(tmp_path, monkeypatch):
    """Code of loaded models goes into a folder of the test."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def random(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's parameters, all made random, so that a bias that is lost is noticed; and put into the model."""
    state = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda leaf: (rng.normal(size=leaf.shape) * 0.3 + 0.1).astype(np.float32), state)
    nnx.update(model, state)
    return {name: np.asarray(leaf) for name, leaf in flatten(state).items()}


def batch(tokenizer, settings: schema.Tokenizer, pairs=None):
    """TEXTS as a model sees them: tokens int32 [batch, length], lengths [batch], second [batch]."""
    encoded = encoding.encode(tokenizer, TEXTS, pairs, settings.max_length, settings.truncate)
    lengths = np.diff(encoded.offsets).astype(np.int32)
    tokens = np.zeros((len(TEXTS), lengths.max()), np.int32)
    for row, start, length in zip(tokens, encoded.offsets, lengths, strict=False):
        row[:length] = encoded.tokens[start : start + length]
    return tokens, lengths, encoded.segment_start


def theirs(folder: Path, auto: str, pairs=None, **options):
    """Logits of transformers, by its own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    model, report = getattr(transformers, auto).from_pretrained(str(folder), output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    given = tokenizer(TEXTS, pairs, return_tensors="pt", padding=True, truncation=True)
    with torch.no_grad():
        return model.eval()(**given).logits.numpy(), model.config, given


def assert_equal(ours: np.ndarray, others: np.ndarray) -> None:
    assert ours.shape == others.shape
    assert np.abs(ours - others).max() <= TOLERANCE * np.abs(others).max()


def test_an_exported_tagger_gives_the_same_logits_to_each_token(tmp_path):
    config = builders.model()
    model = BertClassifier(config, len(builders.WORDS), len(CLASSES), per_token=True, rngs=nnx.Rngs(0))
    values, file = random(model), builders.tokenizer_json(tmp_path)
    settings = schema.Tokenizer(type="file", max_length=14)
    tokenizer = tokenization.load_tokenizer(file)
    described = tokenization.describe(tokenizer, settings, "")
    export = huggingface.Export(config, values, file, described, CLASSES, per_token=True)
    logits, loaded, given = theirs(
        huggingface.export_model(export, tmp_path / "out"), "AutoModelForTokenClassification"
    )
    real = given["attention_mask"].numpy().astype(bool)
    assert loaded.id2label == dict(enumerate(CLASSES)) and loaded.architectures == ["BertForTokenClassification"]
    assert_equal(np.asarray(model(*batch(tokenizer, settings)))[real], logits[real])


@pytest.mark.parametrize("pairs", [None, PAIRS], ids=["single", "pairs"])
@pytest.mark.parametrize("pooler", [True, False], ids=["pooler", "plain"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_an_exported_classifier_gives_the_same_logits(tmp_path, pool, pooler, pairs):
    config = builders.model(pool=pool, pooler=pooler, lora=schema.Lora(rank=2, alpha=3.0, targets=["value", "up"]))
    model = BertClassifier(config, len(builders.WORDS), len(CLASSES), rngs=nnx.Rngs(0))
    values = bert.merge_lora(random(model), 3.0 / 2)
    file = builders.tokenizer_json(tmp_path)
    settings = schema.Tokenizer(type="file", max_length=14)
    tokenizer = tokenization.load_tokenizer(file)
    described = tokenization.describe(tokenizer, settings, "0")
    folder = huggingface.write_bert(values, bert_architecture(config, 0), file, described, CLASSES, tmp_path / "out")
    ours = np.asarray(model(*batch(tokenizer, settings, pairs)))
    trust = {} if pool == "cls" and pooler else {"trust_remote_code": True}
    others, read, _ = theirs(folder, "AutoModelForSequenceClassification", pairs, **trust)
    assert_equal(ours, others)
    assert read.id2label == dict(enumerate(CLASSES)) and read.label2id["so so"] == 1


@pytest.mark.parametrize("kind", ["bpe", "words", "characters"])
def test_tokenizers_of_every_kind_are_loaded_and_give_the_same_logits(tmp_path, kind):
    settings = schema.Tokenizer(type=kind, size=300, max_length=14)
    tokenizer = tokenization.train(settings, TEXTS * 3)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    vocab = tokenizer.get_vocab_size(with_added_tokens=True)
    config = builders.model(vocab=vocab)
    model = BertClassifier(config, vocab, len(CLASSES), rngs=nnx.Rngs(0))
    values = random(model)
    described = tokenization.describe(tokenizer, settings, "0")
    file = tmp_path / "tokenizer.json"
    folder = huggingface.write_bert(values, bert_architecture(config, 0), file, described, CLASSES, tmp_path / "out")
    ours = np.asarray(model(*batch(tokenizer, settings)))
    others, _, given = theirs(folder, "AutoModelForSequenceClassification")
    assert np.array_equal(given["input_ids"].numpy(), batch(tokenizer, settings)[0])
    assert_equal(ours, others)


def test_an_exported_masked_language_model_gives_the_same_logits(tmp_path):
    config = builders.model()
    model = BertMaskedLM(config, len(builders.WORDS), rngs=nnx.Rngs(0))
    values = random(model)
    file = builders.tokenizer_json(tmp_path)
    settings = schema.Tokenizer(type="file", max_length=14)
    tokenizer = tokenization.load_tokenizer(file)
    described = tokenization.describe(tokenizer, settings, "0")
    folder = huggingface.write_bert(values, bert_architecture(config, 0), file, described, None, tmp_path / "out")
    tokens, lengths, second = batch(tokenizer, settings)
    ours = np.asarray(model.logits(model(tokens, lengths, second)))
    others, _, _ = theirs(folder, "AutoModelForMaskedLM")
    real = np.arange(tokens.shape[1]) < lengths[:, None]
    assert_equal(ours[real], others[real])


def test_what_transformers_saves_is_taken_over_and_gives_the_same_logits(tmp_path):
    torch.manual_seed(0)
    names = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 12}
    peer = transformers.BertForSequenceClassification(
        transformers.BertConfig(**names, vocab_size=10, max_position_embeddings=16, id2label=dict(enumerate(CLASSES)))
    )
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.normal_(0.1, 0.3)
    peer.save_pretrained(str(tmp_path / "peer"))
    source = sources.locate_source(str(tmp_path / "peer"))
    config = sources.fill_architecture(schema.Bert(init_from=str(tmp_path / "peer"), pooler=True), source)
    model = BertClassifier(config, 10, len(CLASSES), rngs=nnx.Rngs(0))
    wanted = {name: leaf.shape for name, leaf in flatten(nnx.to_pure_dict(nnx.state(model, nnx.Param))).items()}
    values, new, unused = loading.load_weights(source, wanted, classes=CLASSES)
    assert not new and not unused
    nnx.update(model, nested(values))
    tokens = np.random.default_rng(0).integers(0, 10, (3, 7)).astype(np.int32)
    lengths = np.array([7, 3, 1], np.int32)
    ours = np.asarray(model(tokens, lengths, lengths))
    mask = torch.tensor(np.arange(7) < lengths[:, None]).long()
    with torch.no_grad():
        others = peer.eval()(torch.tensor(tokens).long(), attention_mask=mask).logits.numpy()
    assert_equal(ours, others)


def nested(values: dict[str, np.ndarray]) -> dict:
    """Parameters by path as the tree that nnx wants; numbers are places in a list."""
    tree: dict = {}
    for name, leaf in values.items():
        node = tree
        *parents, last = [int(part) if part.isdigit() else part for part in name.split("/")]
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree


# --------------------------------------------------------------------------------------------------- the whole command


@pytest.fixture
def reviews(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    rows = [{"text": " ".join(rng.choice(["good", "bad", "film", "so"], n % 9 + 1)), "label": n % 3} for n in range(90)]
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps({**r, "label": CLASSES[r["label"]]}) + "\n" for r in rows))
    return file


SMALL = [
    "model.init_from=null",
    "model.layers=2",
    "model.width=16",
    "model.heads=2",
    "model.intermediate=24",
    "model.positions=32",
]
SHORT = ["train.steps=2", "train.batch_size=16", "train.epochs=null", "recipe.tokenizer.max_length=20"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["recipe=bert_cls", "model=bert", "model.pool=mean", "recipe.tokenizer.type=words"],
        ["recipe=bert_cls", "model=bert", "model.pooler=true", "model.lora.rank=2", "recipe.tokenizer.type=bpe"],
        ["recipe=bert_mlm", "model=bert", "recipe.tokenizer.type=characters", "recipe.mask_rate=0.5"],
    ],
    ids=["mean-words", "pooler-lora-bpe", "masked-characters"],
)
def test_what_the_command_trains_and_exports_gives_the_same_logits(bigctl, reviews, changes):
    data = ["data=jsonl", f"data.path={reviews}", "data.text=text", "data.label=label"]
    bigctl("train", *changes, *data, *SMALL, *SHORT, "--name", "first")
    report = bigctl.json("export", "first", "--format", "hf", "--out", "out")
    trained = TrainedRun.load(str(bigctl.folder / "runs" / "first"))
    tokenizer = tokenization.load_tokenizer(trained.run.path / "tokenizer.json")
    tokens, lengths, second = batch(tokenizer, trained.config.recipe.tokenizer)
    ours, real = trained.model(tokens, lengths, second), slice(None)
    masked = report["class"] == "BertForMaskedLM"
    if masked:
        ours, real = trained.model.logits(ours), np.arange(tokens.shape[1]) < lengths[:, None]
    auto = "AutoModelForMaskedLM" if masked else "AutoModelForSequenceClassification"
    others, read, _ = theirs(bigctl.folder / report["folder"], auto, trust_remote_code=not masked)
    assert_equal(np.asarray(ours)[real], others[real])
    assert masked or tuple(read.id2label.values()) == trained.features.classes
