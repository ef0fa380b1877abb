"""Preparing a large table, or texts: by blocks, as a whole, and `pandas.read_csv` of the same file, in one run; with
--parquet of the same rows in Parquet, and `pandas.read_parquet`.

The table is made up: numbers, some of them missing, words that repeat, dates, and a class; with --texts it has texts of
such words as few texts and many have, and they become tokens of a vocabulary of their own. Every way runs in a process
of its own, in turns, with an empty cache. Seconds are beyond imports, those of the processor tell more on a busy
machine; memory is the peak of the whole process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PREPARE = """
import json, resource, sys, time
from bigctl.config import schema
from bigctl.data.preparation import prepare
from bigctl.data.sources import column_blocks, delimited
from bigctl.data.text import tokenization
if sys.argv[2] == "whole":
    delimited._LARGE = column_blocks.LARGE = 2**62
kind = schema.Parquet if sys.argv[1].endswith(".parquet") else schema.Csv
config, given = kind(path=sys.argv[1], label=sys.argv[3], text=sys.argv[4] or None), {}
if config.text:
    given["tokenizer"] = tokenization.spec(schema.Tokenizer(type="words", size=20_000, max_length=128))
began, worked = time.perf_counter(), time.process_time()
made = prepare.prepare(config, **given)
first, worked = time.perf_counter(), time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare.prepare(config, **given)
again = time.perf_counter() - first
print(json.dumps({"seconds": first - began, "processor": worked, "again": again, "megabytes": peak / 1000,
                  "fingerprint": made.fingerprint}))
"""

PANDAS = """
import json, resource, sys, time
import pandas
began, worked = time.perf_counter(), time.process_time()
frame = (pandas.read_parquet if sys.argv[1].endswith(".parquet") else pandas.read_csv)(sys.argv[1])
first, worked = time.perf_counter(), time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": first - began, "processor": worked, "megabytes": peak / 1000}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=300.0, help="size of the table that is made")
    parser.add_argument("--numbers", type=int, default=16, help="columns of numbers")
    parser.add_argument("--table", type=Path, help="a csv file in place of the one that is made up")
    parser.add_argument("--label", default="class", help="the target column")
    parser.add_argument("--pandas", metavar="PYTHON", default=sys.executable, help="a Python that has `pandas`")
    parser.add_argument("--texts", action="store_true", help="make texts, in a column of that name")
    parser.add_argument("--parquet", action="store_true", help="write the table as Parquet, and read that")
    parser.add_argument("--turns", type=int, default=1, help="how often each way runs")
    parser.add_argument("--without-whole", action="store_true", help="leave out the way that needs most memory")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_rows-"))
    try:
        file = options.table or folder / "rows.csv"
        if options.table is None:
            make = write_texts if options.texts else write_table
            make(file, options.megabytes * 1e6, options.numbers)
        if options.parquet:
            file = as_parquet(file, folder / "rows.parquet")
        options.megabytes = file.stat().st_size / 1e6
        ways = {
            "by blocks": (sys.executable, PREPARE, "blocks"),
            "as a whole": (sys.executable, PREPARE, "whole"),
            "pandas.read_csv": (options.pandas, PANDAS, ""),
        }
        if options.without_whole:
            del ways["as a whole"]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        for _ in range(options.turns):
            for name, (python, program, way) in ways.items():
                found[name].append(
                    run(folder, python, program, [str(file), way, options.label, "texts" * options.texts])
                )
        report(options, found)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_table(file: Path, size: float, numbers: int) -> None:
    import numpy as np

    draw, written, first = np.random.default_rng(0), 0, 0
    cities, rows = np.array(["Rome", "Cologne", "Oslo", "Lima", "Hanoi", ""]), 20_000
    with file.open("w") as stream:
        names = [f"x{number}" for number in range(numbers)]
        written += stream.write(",".join(["id", "city", "zip", "day", *names, "class"]) + "\n")
        while written < size:
            values = draw.normal(size=(rows, numbers)).round(6).astype(str)
            values[draw.random(values.shape) < 0.02] = ""
            days = np.datetime64("2020-01-01") + draw.integers(0, 1500, rows)
            own = [
                np.arange(first, first + rows).astype(str), draw.choice(cities, rows),
                draw.integers(10_000, 10_300, rows).astype(str), days.astype(str), *values.T,
                draw.choice(["yes", "no"], rows),
            ]  # fmt: skip
            written += stream.write("\n".join(map(",".join, zip(*(each.tolist() for each in own), strict=True))) + "\n")
            first += rows


def write_texts(file: Path, size: float, numbers: int) -> None:
    import numpy as np

    draw, written = np.random.default_rng(0), 0
    words = np.array(["".join(draw.choice([*"abcdefghijklmnoprstuvw"], draw.integers(2, 10))) for _ in range(30_000)])
    with file.open("w") as stream:
        written += stream.write("texts,class\n")
        while written < size:
            said = words[np.minimum(draw.zipf(1.2, 100_000), len(words)) - 1]
            parts = np.split(said, np.sort(draw.choice(len(said) - 1, 2000, replace=False)) + 1)
            written += stream.write("".join(f"{' '.join(each)},{len(each) % 2}\n" for each in parts))


def as_parquet(table: Path, file: Path) -> Path:
    """The same rows as a Parquet file, in groups of some thousands."""
    import pyarrow.csv
    import pyarrow.parquet

    with pyarrow.csv.open_csv(table) as read, pyarrow.parquet.ParquetWriter(file, read.schema) as out:
        for batch in read:
            out.write_batch(batch)
    return file


def run(folder: Path, python: str, program: str, arguments: list[str]) -> dict[str, float]:
    """One way, in an empty cache."""
    cache, script = folder / "cache", folder / "way.py"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    script.write_text(program)
    environment = {**os.environ, "BIGCTL_CACHE_DIR": str(cache)}
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, str(script), *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    def median(what: str) -> dict[str, float]:
        return {name: statistics.median(each[what] for each in runs) for name, runs in found.items()}

    seconds, processor = median("seconds"), median("processor")
    megabytes = {name: max(each["megabytes"] for each in runs) for name, runs in found.items()}
    blocks, ratios = found["by blocks"][-1], dict[str, float]()
    for what, times in (("seconds", seconds), ("seconds of the processor", processor)):
        others = [times[name] for name in times if name != "by blocks"]
        ratios[f"{what}, by blocks over {' and '.join([*times][1:])}"] = times["by blocks"] / sum(others)
        ratios[f"{what}, by blocks over pandas.read_csv"] = times["by blocks"] / times["pandas.read_csv"]
    measured = {"seconds": seconds, "processor": processor, "megabytes": megabytes, "ratios": ratios}
    if options.json:
        print(json.dumps({**measured, "again": blocks["again"]}, indent=1))
        return
    for name, value in seconds.items():
        work, most = processor[name], megabytes[name]
        print(f"{name:<20} {value:7.1f} s  {work:7.1f} s of the processor  {most:8,.0f} MB at most")
    for name, value in ratios.items():
        print(f"{name:<80} {value:5.2f}")
    print(f"a second start, beyond imports: {blocks['again']:.2f} s")
    if "as a whole" in found:
        same = blocks["fingerprint"] == found["as a whole"][-1]["fingerprint"]
        print("by blocks and as a whole: " + ("the same arrays" if same else "DIFFERENT ARRAYS"))


if __name__ == "__main__":
    main()
