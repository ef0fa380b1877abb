"""The process that speaks to one tracking service for a run, started by `training.trackers`.

It reads lines of JSON and writes some, on stdin and what was stdout; nothing a service prints gets anywhere.

    <- {"service", "key", "known", "project", "name", "group", "folder", "parameters"}   at first
    <- {"step", "time", "values"}    metrics of a step; with "result", they are those of the whole run
    <- {"cut": step}                 training has gone back there: what follows replaces what came after
    <- {"end": status}               complete, failed or preempted; without it, the run was killed
    -> {"id", "url"}                 what the service calls the run
    -> {"late": true}                the service does not keep up: steps are left out; said of each
    -> {"error": text}  or  {"done": true}

Free of jax.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

WAITING = 10_000
"""Steps that wait for a slow service at most; later ones are left out."""
LAST = 30.0
"""How long this process outlives the run at most [s]."""
_PARAMETER, _PARAMETERS, _METRICS = 500, 100, 1000
"""What every MLflow server takes: characters of a parameter, parameters and metrics of a request."""

Line = dict[str, Any]


class Service(Protocol):
    def told(self) -> Line:
        """What the service calls the run: `id`, and `url` if there is one."""

    def write(self, lines: Sequence[Line]) -> None: ...
    def cut(self) -> None: ...
    def end(self, status: str) -> None: ...


class Wandb:
    """A W&B run. Its history only grows: `step` is a column and the x-axis, so what is logged again after training
    went back is shown over what was there; of a resumed run, steps that are there already are not sent again."""

    def __init__(self, start: Line):
        import wandb

        self.run = wandb.init(
            id=start["key"],
            resume="allow",
            project=start["project"] or os.environ.get("WANDB_PROJECT") or "bigctl",
            name=start["name"],
            group=start["group"],
            dir=None if os.environ.get("WANDB_DIR") else start["folder"],
            config=start["parameters"],
            allow_val_change=True,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.sent = int(self.run.summary.get("step") or 0) if start["known"] else 0

    def told(self) -> Line:
        return {"id": self.run.id, **({"url": self.run.url} if self.run.url else {})}

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line["step"] > self.sent or "result" in line:
                self.run.log({"step": line["step"], **line["values"]})

    def cut(self) -> None:
        self.sent = 0

    def end(self, status: str) -> None:
        self.run.finish(exit_code=0 if status == "complete" else 1)


class Mlflow:
    """An MLflow run, found again by a tag. Its metrics only grow, each point with its step, and its parameters stay as
    they were at first; of a resumed run, steps that are there already are not sent again."""

    def __init__(self, start: Line):
        from mlflow.tracking import MlflowClient

        self.client = MlflowClient()
        experiment = self._experiment(start["project"] or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "bigctl")
        tags = {"bigctl.key": start["key"], **({"bigctl.sweep": start["group"]} if start["group"] else {})}
        where = f"tags.`bigctl.key` = '{start['key']}'"
        found = self.client.search_runs([experiment], where, max_results=1) if start["known"] else []
        run = found[0] if found else self.client.create_run(experiment, tags=tags, run_name=start["name"])
        self.id, self.sent = run.info.run_id, 0
        if found:
            self.client.update_run(self.id, status="RUNNING")
            points = (p for name in run.data.metrics for p in self.client.get_metric_history(self.id, name))
            self.sent = max((point.step for point in points), default=0)
        self._parameters({k: v for k, v in start["parameters"].items() if k not in run.data.params})

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if (found := self.client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name))
        except MlflowException:  # another trial was quicker
            if (found := self.client.get_experiment_by_name(name)) is None:
                raise
            return str(found.experiment_id)

    def _parameters(self, values: Line) -> None:
        from mlflow.entities import Param

        everything = [Param(name, str(value)[:_PARAMETER]) for name, value in values.items()]
        for some in _parts(everything, _PARAMETERS):
            self.client.log_batch(self.id, params=some)

    def told(self) -> Line:
        return {"id": self.id}

    def write(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric

        everything = [
            Metric(name, value, int(line["time"] * 1000), line["step"])
            for line in lines
            if line["step"] > self.sent or "result" in line
            for name, value in line["values"].items()
        ]
        for some in _parts(everything, _METRICS):
            self.client.log_batch(self.id, metrics=some)

    def cut(self) -> None:
        self.sent = 0

    def end(self, status: str) -> None:
        ends = {"complete": "FINISHED", "failed": "FAILED"}
        self.client.set_terminated(self.id, status=ends.get(status, "KILLED"))


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[i : i + size] for i in range(0, len(items), size))


SERVICES: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


def serve(service: Service, lines: queue.SimpleQueue[Line | None]) -> None:
    """Hand on what comes, as much at a time as there is, until the run has ended."""
    while True:
        waiting = [lines.get()]
        with contextlib.suppress(queue.Empty):
            while len(waiting) < _METRICS and waiting[-1] is not None:
                waiting.append(lines.get_nowait())
        steps: list[Line] = []
        for line in waiting:
            if line is not None and "step" in line:
                steps.append(line)
                continue
            service.write(steps)
            steps = []
            if line is None or "end" in line:
                return service.end(line["end"] if line else "killed")
            service.cut()
        service.write(steps)


def _read(stream: Iterable[bytes], lines: queue.SimpleQueue[Line | None], tell: Callable[..., None]) -> None:
    """All lines into the queue, also while the service hangs: this process must know when the run has ended. Of steps
    only so many wait there."""
    for line in stream:
        with contextlib.suppress(ValueError):  # cut short: the run was killed
            found = json.loads(line)
            if "step" in found and lines.qsize() >= WAITING:
                tell(late=True)
                continue
            lines.put(found)
            if "end" in found:
                break
    lines.put(None)
    last = threading.Timer(LAST, os._exit, [1])
    last.daemon = True
    last.start()


def main() -> None:
    said = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    with contextlib.suppress(OSError):
        os.nice(10)  # training goes first
    for name, value in (("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")):
        os.environ.setdefault(name, value)

    def tell(**told: object) -> None:
        with contextlib.suppress(OSError):  # the run was killed
            said.write(json.dumps(told, default=str) + "\n")

    lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(os.fdopen(0, "rb"), lines, tell), daemon=True).start()
    code = 0
    try:
        start = lines.get()
        if start is not None:
            service = SERVICES[start["service"]](start)
            tell(**service.told())
            serve(service, lines)
            tell(done=True)
    except BaseException as error:
        text = str(error).strip() or type(error).__name__
        tell(error=text.splitlines()[0] if text else type(error).__name__)
        code = 1
    os._exit(code)  # what the services have registered for the end might wait for ever


if __name__ == "__main__":
    main()
