"""Compose, train, evaluate and predict from Python; run it twice, and the second time finds the run complete."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

import bigctl


def main() -> None:
    config = bigctl.compose(["recipe=cnn_cls", "data=digits", "train.epochs=5", "optimizer.lr=2e-3"])
    summary = bigctl.train(config, "runs/python_session", quiet=True)
    print(f"step {summary['step']:,}: test accuracy {summary['metrics']['test/accuracy']:.3f}")

    model = bigctl.load("runs/python_session")
    digits = load_digits()
    images = (digits.images[:8, :, :, None] * 255 / 16).round().astype(np.uint8)  # 0 to 16 -> 0 to 255
    probabilities = model.predict(images)  # float32 [8, 10]
    for true, row in zip(digits.target[:8], probabilities, strict=True):
        print(f"a {true} is read as {row.argmax()}, with probability {row.max():.2f}")


if __name__ == "__main__":
    main()
