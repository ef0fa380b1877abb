"""Make the small run in tests/fixtures that every later version has to load, verify and resume.

Made once for a version of the checkpoint format and then kept: a new format gets a folder of its own, the old one
stays. What tells about the machine it was made on is left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from pathlib import Path

EXAMPLES = """\
examples:
  python scripts/make_checkpoint_fixture.py --folder tests/fixtures/run_v2
"""
OVERRIDES = [
    "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[8]", "train.steps=20", "train.log_every=5", "eval.every=10",
    "checkpoint.every=10", "train.ema=0.9", "schedule=constant", "train.tensorboard=false",
]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where to write it; must not exist")
    target = parser.parse_args().folder
    if target.exists():
        parser.error(f"{target} exists; fixtures of earlier versions are kept as they are")

    import bigctl
    from bigctl.runs import manifest
    from bigctl.training.checkpoints.arrays import read_arrays
    from bigctl.training.checkpoints.store import Checkpoints

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        bigctl.train(bigctl.compose(OVERRIDES), run, quiet=True)
        for name in (".lock", "log.txt"):
            (run / name).unlink()
        record = json.loads((run / "run.json").read_text())
        record |= {"machine": {}, "code": {}, "starts": [{"time": 0.0, "step": 0, "argv": [], "changed": []}]}
        (run / "run.json").write_text(json.dumps(record, indent=1) + "\n")
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, "run": target.name}, indent=1) + "\n")
        store, digests = Checkpoints(run / "checkpoints"), {}
        for step in store.steps():
            note = run / "checkpoints" / f"{step:09d}" / "state" / "commit_success.txt"
            note.write_text("the path that stood here was of another machine\n")
            manifest.write_manifest(note.parents[1])
            saved = store.find(step)
            arrays = read_arrays(saved.path, list(saved.meta["shapes"]))
            digests[step] = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
        (run / "expected.json").write_text(json.dumps(digests, indent=1) + "\n")
        shutil.copytree(run, target)
    print(f"{target}: {sum(p.stat().st_size for p in target.rglob('*') if p.is_file()):,} bytes")


if __name__ == "__main__":
    main()
