"""A training loop written by hand on bigctl's data, model and compiled step.

bigctl's own loop, `bigctl/training/loop.py`, adds logging, checkpoints, early stopping and signals to the same calls.
"""

from __future__ import annotations

from functools import partial

import bigctl
from bigctl.engine import experiment
from bigctl.parallel.mesh import batch_sharding, put_batch
from bigctl.training import metrics


def main(steps: int = 200, log_every: int = 50) -> None:
    config = bigctl.compose(["recipe=cnn_cls", "data=digits", f"train.steps={steps}", "train.batch_size=64"])
    built = experiment.build(config)  # data is prepared, the model is not allocated yet
    programs, layout = built.programs, built.dataset.batches
    columns = built.dataset.splits["train"]  # memory-mapped arrays: inputs uint8 [N, 8, 8, 1], label int32 [N]

    plan = layout.training_plan(columns, batch_size=config.train.batch_size, seed=config.seed)
    where = batch_sharding(programs.mesh)
    state = programs.initialise()
    for step in range(steps):
        # Which examples make up the batch is a function of (seed, position), so this loop could be cut here and
        # continued elsewhere.
        indices, length = plan.batch(step * config.train.batch_size)
        batch = put_batch(partial(layout.gather, columns, length=length), indices, where)
        state = programs.step_sent(state, batch, programs.hparams)
        if (step + 1) % log_every == 0:
            state, sums, _ = programs.take_sums(state)
            print(step + 1, metrics.means(sums, "train"))

    scores = built.evaluator("test", "test")(programs.evaluation_weights(state), state.variables)
    print(f"test accuracy {scores['test/accuracy']:.3f}")


if __name__ == "__main__":
    main()
