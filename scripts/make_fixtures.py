"""Write tests/fixtures: what torch and transformers compute for small models, for environments without them.

The plain tests compare bigctl's models with these files; tests/parity does so live. Needs torch and transformers beside
bigctl. Only a change of the cases in tests/parity/cases.py calls for new files.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]

EXAMPLES = """\
examples:
  python scripts/make_fixtures.py
  python scripts/make_fixtures.py --only lstm
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="PREFIX", help="just the cases whose names begin like this")
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "fixtures", help="default: tests/fixtures")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    try:
        from tests.parity import cases, reference
    except ModuleNotFoundError as error:
        sys.exit(f"make_fixtures: no module {error.name!r}; it needs bigctl, torch and transformers")
    made = {name: reference.bert(config) for name, config in cases.BERT.items()}
    made.update((name, reference.bert(config, masked_lm=True)) for name, config in cases.MASKED_LM.items())
    made.update((name, reference.decoder(*model)) for name, model in cases.DECODER.items())
    made.update((name, reference.lstm(config)) for name, config in cases.LSTM.items())
    options.out.mkdir(parents=True, exist_ok=True)
    for name, case in made.items():
        if name.startswith(options.only):
            path = options.out / f"{name}.npz"
            np.savez_compressed(path, **case)  # type: ignore[arg-type]
            print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
