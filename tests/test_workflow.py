"""The workflow of docs/github-actions.yml, run step by step as GitHub would, each job in a folder of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.fewer
DOCS = Path(__file__).resolve().parents[1] / "docs"
EXPERIMENT = "recipe=mlp_cls model.hidden=[4] eval.every=100000 checkpoint.every=100000"


def workflow() -> dict[str, Any]:
    return yaml.safe_load((DOCS / "github-actions.yml").read_text(encoding="utf-8"))


def test_the_page_shows_the_workflow_as_it_is() -> None:
    assert (DOCS / "github-actions.yml").read_text(encoding="utf-8") in (DOCS / "ci.md").read_text(encoding="utf-8")


def test_no_job_is_given_less_time_than_its_slice_and_no_cache_is_saved_twice() -> None:
    plan = workflow()
    limit = float(re.search(r"max_minutes=(\d+)", plan["env"]["EXPERIMENT"])[1])  # type: ignore[index]
    keys = []
    for job in plan["jobs"].values():
        assert job["timeout-minutes"] > limit
        by_action = {step["uses"].split("@")[0]: step for step in job["steps"] if "uses" in step}
        restore, save = (by_action[f"actions/cache/{what}"]["with"] for what in ("restore", "save"))
        assert restore["key"] == save["key"] and save["key"].startswith(restore["restore-keys"])
        keys.append(save["key"])
    assert len(set(keys)) == len(keys) and "matrix.slice" in keys[0] and "run_attempt" in keys[0]
    assert plan["jobs"]["train"]["strategy"]["max-parallel"] == 1


class Runner:
    """What GitHub does, as far as the workflow needs it: steps one after the other, caches by key, a page a job."""

    def __init__(self, folder: Path):
        self.folder, self.plan, self.jobs = folder, workflow(), 0
        self.caches: list[tuple[str, Path]] = []

    def job(self, name: str, *, slice: int | None = None, **env: str) -> tuple[int, str]:
        """Run a job; gives its exit code and what it printed, its summary last."""
        self.jobs += 1
        place = self.folder / f"job-{self.jobs}"
        place.mkdir()
        page = place / "page.md"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, **self.plan["env"], **env, "GITHUB_STEP_SUMMARY": str(page), "PATH": path}
        code, printed = 0, ""
        for step in self.plan["jobs"][name]["steps"]:
            if code and step.get("if") != "always()":
                continue
            if "uses" in step:
                self._use(step, place, str(slice))
            elif step["name"] != "Install":
                done = subprocess.run(
                    ["bash", "-e", "-c", step["run"]], cwd=place, env=env, capture_output=True, text=True
                )
                code, printed = done.returncode, printed + done.stdout + done.stderr
        return code, printed + (page.read_text() if page.exists() else "")

    def _use(self, step: dict[str, Any], place: Path, slice: str) -> None:
        given = {
            name: re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda m: slice if m[1] == "matrix.slice" else m[1], str(value))
            for name, value in step.get("with", {}).items()
        }
        if step["uses"].startswith("actions/cache/restore@"):
            found = [c for key, c in reversed(self.caches) if key.startswith((given["key"], given["restore-keys"]))]
            if found:
                shutil.copytree(found[0], place / given["path"])
        elif step["uses"].startswith("actions/cache/save@"):
            kept = self.folder / f"cache-{self.jobs}"
            shutil.copytree(place / given["path"], kept)
            self.caches.append((given["key"], kept))

    def checkpoint(self) -> int:
        """The newest step that the last cache holds; 0 for none."""
        return max((int(p.parent.name) for p in self.caches[-1][1].glob("ci/checkpoints/*/manifest-0.json")), default=0)


@pytest.mark.slow
def test_slices_hand_the_run_on_until_the_gate_judges_it(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    step, minutes = 0, 0.06
    while not step:  # a slow machine needs longer ones before it makes a step
        minutes *= 2
        endless = f"{EXPERIMENT} train.steps=100000000 train.max_minutes={minutes}"
        code, printed = runner.job("train", slice=1, EXPERIMENT=endless)
        assert code == 0 and "stopped by train.max_minutes" in printed, printed
        assert "to be continued" in printed and "Next: `bigctl resume runs/ci`" in printed
        step = runner.checkpoint()

    code, printed = runner.job("gate", EXPERIMENT=endless)
    assert code == 75 and f"resuming from step {step:,}" in printed, printed  # not done yet: no verdict
    step = runner.checkpoint()

    short = f"{EXPERIMENT} train.steps={step + 100} train.max_minutes=5"
    code, printed = runner.job("train", slice=2, EXPERIMENT=short)
    assert code == 0 and f"resuming from step {step:,}" in printed, printed
    assert runner.checkpoint() == step + 100
    code, printed = runner.job("train", slice=3, EXPERIMENT=short)
    assert code == 0 and "nothing to do" in printed, printed
    code, printed = runner.job("gate", EXPERIMENT=short, REQUIRE="val/accuracy>=0.5")
    assert code == 0 and "passed: val/accuracy is" in printed and "| passed |" in printed, printed
    code, printed = runner.job("gate", EXPERIMENT=short, REQUIRE="val/accuracy>1")
    assert code == 4 and "bigctl: val/accuracy is" in printed and "**missed**" in printed, printed
    assert "<failure" in (tmp_path / f"job-{runner.jobs}" / "report.xml").read_text()


@pytest.mark.slow
def test_a_failure_fails_its_job(tmp_path: Path) -> None:
    runner = Runner(tmp_path)
    code, printed = runner.job("train", slice=1, EXPERIMENT=f"{EXPERIMENT} optimizer=sgd optimizer.lr=1e30")
    assert code == 1 and "not finite" in printed and "failed" in printed, printed
