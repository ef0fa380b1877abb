"""Test scores of the recipes over seeds or splits, as the README and the recipes' headers quote them."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence

MEASUREMENTS = {
    "mnist5k": (["recipe=cnn_cls"], "seed", 3),
    "digits": (["recipe=cnn_cls", "data=digits"], "seed", 3),
    "breast_cancer": (["recipe=mlp_cls"], "data.split_seed", 10),
    "rotten_tomatoes": (["recipe=bert_cls"], "seed", 3),
    "imdb": (["recipe=lstm_cls"], "seed", 1),
    "r8_bert": (["recipe=bert_cls", "data=r8", "train.epochs=3"], "seed", 1),
    "r8_lstm": (["recipe=lstm_cls", "data=r8"], "seed", 1),
}
"""Name -> overrides, what is varied, and how often."""

SMS = [
    "data=tsv", "data.columns=[label,text]", "data.text=text", "data.label=label", "data.quoting=false",
    "data.deduplicate=true", "data.test_fraction=0.2",
]  # fmt: skip
SST2 = ["data=tsv", "data.columns=[text,label]", "data.text=text", "data.label=label"]


_SST2_FILES = [("path", "train"), ("validation_path", "dev"), ("test_path", "test")]


def train(overrides: Sequence[str], folder: str) -> dict[str, float]:
    """One training through the command line; its test accuracy and its seconds of training proper."""
    command = [sys.executable, "-m", "bigctl", "train", *overrides, "--json", "--quiet"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    summary = json.loads(done.stdout)
    return {"accuracy": summary["metrics"]["test/accuracy"], "seconds": summary["timings"]["train"]}


def logistic_regression(split_seed: int) -> float:
    """Test accuracy of scikit-learn's logistic regression on the training split of breast_cancer."""
    from sklearn.linear_model import LogisticRegression

    import bigctl
    from bigctl.data.preparation import prepare

    config = bigctl.compose(["recipe=mlp_cls", f"data.split_seed={split_seed}"])
    splits = prepare.prepare(config.data).splits
    model = LogisticRegression(max_iter=5000).fit(splits["train"]["inputs"], splits["train"]["label"])
    return float(model.score(splits["test"]["inputs"], splits["test"]["label"]))


def tf_idf(overrides: Sequence[str], split_seed: int) -> float:
    """Test accuracy of scikit-learn's logistic regression on TF-IDF of words and pairs of words, on the same split."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    import bigctl
    from bigctl.data.preparation import prepare

    config = bigctl.compose([*overrides, f"data.split_seed={split_seed}"])
    dataset = prepare.prepare(config.data)
    texts = {split: [found[0][n] for n in range(dataset.size(split))] for split, found in dataset.texts.items()}
    labels = {split: columns["label"] for split, columns in dataset.splits.items()}
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = make_pipeline(vectors, LogisticRegression(C=30, max_iter=2000)).fit(texts["train"], labels["train"])
    return float(model.score(texts["test"], labels["test"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python scripts/scores.py digits")
    parser.add_argument("names", nargs="*", default=[], help=f"which: {', '.join(MEASUREMENTS)}; default: all")
    parser.add_argument("--mnist", metavar="DIR", help="also real MNIST from idx files in this folder, one seed")
    parser.add_argument("--sst2", metavar="DIR", help="also SST-2: train.tsv, dev.tsv and test.tsv, text and label")
    parser.add_argument("--sms", metavar="FILE", help="also SMS spam, label and text, deduplicated, five splits")
    options = parser.parse_args()
    own = options.mnist or options.sst2 or options.sms
    chosen = {name: MEASUREMENTS[name] for name in options.names or ([] if own else MEASUREMENTS)}
    if options.mnist:
        chosen["mnist"] = (["recipe=cnn_cls", "data=idx", f"data.path={options.mnist}"], "seed", 1)
    if options.sst2:
        files = [f"data.{part}={options.sst2}/{file}.tsv" for part, file in _SST2_FILES]
        chosen["sst2"] = (["recipe=bert_cls", *SST2, *files], "seed", 1)
    if options.sms:
        sms = [*SMS, f"data.path={options.sms}"]
        short, alone = "recipe.tokenizer.max_length=128", ["model=lstm", "recipe.label_smoothing=0"]
        chosen["sms_bert"] = (["recipe=bert_cls", *sms, "train.epochs=3"], "data.split_seed", 5)
        chosen["sms_lstm"] = (["recipe=lstm_cls", *alone, *sms, "train.epochs=6", short], "data.split_seed", 5)
    for name, (overrides, varied, count) in chosen.items():
        with tempfile.TemporaryDirectory() as folder:
            results = [train([*overrides, f"{varied}={n}"], folder) for n in range(count)]
        scores = [result["accuracy"] for result in results]
        print(f"{name}: test accuracy {statistics.mean(scores):.4f} over {count} values of {varied}")
        print(f"  each: {', '.join(f'{score:.4f}' for score in scores)}")
        print(f"  training: {', '.join(format(result['seconds'], '.1f') for result in results)} s")
        if name == "breast_cancer":
            peer = statistics.mean(logistic_regression(n) for n in range(count))
            print(f"  scikit-learn's logistic regression on the same splits: {peer:.4f}")
        if name == "sms_lstm":
            peers = [tf_idf(overrides, n) for n in range(count)]
            print(f"  TF-IDF and logistic regression on the same splits: {statistics.mean(peers):.4f}")


if __name__ == "__main__":
    main()
