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
}
"""Name -> overrides, what is varied, and how often."""


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
    from bigctl.data import prepare

    config = bigctl.compose(["recipe=mlp_cls", f"data.split_seed={split_seed}"])
    splits = prepare.prepare(config.data).splits
    model = LogisticRegression(max_iter=5000).fit(splits["train"]["inputs"], splits["train"]["label"])
    return float(model.score(splits["test"]["inputs"], splits["test"]["label"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: python scripts/scores.py digits")
    parser.add_argument("names", nargs="*", default=[], help=f"which: {', '.join(MEASUREMENTS)}; default: all")
    parser.add_argument("--mnist", metavar="DIR", help="also real MNIST from idx files in this folder, one seed")
    options = parser.parse_args()
    chosen = {name: MEASUREMENTS[name] for name in options.names or ([] if options.mnist else MEASUREMENTS)}
    if options.mnist:
        chosen["mnist"] = (["recipe=cnn_cls", "data=idx", f"data.path={options.mnist}"], "seed", 1)
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


if __name__ == "__main__":
    main()
