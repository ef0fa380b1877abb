"""Tokenising a large text: one process and two, `datasets.map`, and a pool of plain `tokenizers`, on the same text.

The text is made of real ones given by name, their paragraphs drawn in a random order again and again; words repeat as
in any text, but few are new after a while, which is good for whoever remembers words. Every way runs in a process of
its own, in turns, with the same tokenizer of 8,000 byte-level tokens and an empty cache. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
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
from bigctl.data.layouts.choose import BatchOptions
from bigctl.data.text import tokenization
text, tokenizer, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
spec = tokenization.spec(schema.StreamTokenizer(type="file", path=tokenizer))
config = schema.TextFiles(path=text, workers=workers)
began, before = time.perf_counter(), time.process_time()
made = prepare.prepare(config, tokenizer=spec, batches=BatchOptions(block=64))
first = time.perf_counter()
prepare.prepare(config, tokenizer=spec, batches=BatchOptions(block=64))
own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
megabytes = (own.ru_maxrss + (workers if workers > 1 else 0) * others.ru_maxrss) / 1000
found = {"seconds": first - began, "again": time.perf_counter() - first, "megabytes": megabytes}
used = {"own": own.ru_utime + own.ru_stime - before, "others": others.ru_utime + others.ru_stime}
print(json.dumps(found | used))
"""

DATASETS = """
import json, sys, time
import datasets
from tokenizers import Tokenizer
text, file, workers, cache = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
datasets.disable_progress_bars()
if __name__ == "__main__":
    tokenizer = Tokenizer.from_file(file)
    def encode(rows):
        return {"ids": [found.ids for found in tokenizer.encode_batch_fast(rows["text"], add_special_tokens=False)]}
    began = time.perf_counter()
    found = datasets.load_dataset("text", data_files=text, split="train", cache_dir=cache, sample_by="paragraph")
    found = found.map(encode, batched=True, num_proc=workers, remove_columns=["text"])
    print(json.dumps({"seconds": time.perf_counter() - began, "rows": len(found)}))
"""

POOL = """
import json, multiprocessing, sys, time
from tokenizers import Tokenizer
text, file, workers, out = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]

def start():
    global tokenizer
    tokenizer = Tokenizer.from_file(file)

def encode(texts):
    import numpy as np
    found = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return b"".join(np.array(each.ids, "<u2").tobytes() for each in found)

def batches():
    batch = []
    for paragraph in open(text, encoding="utf-8").read().split("\\n\\n"):
        batch.append(paragraph)
        if len(batch) == 1000:
            yield batch
            batch = []
    yield batch

if __name__ == "__main__":
    began = time.perf_counter()
    with multiprocessing.Pool(workers, start) as pool, open(out + "/tokens.bin", "wb") as stream:
        for found in pool.imap(encode, batches(), chunksize=1):
            stream.write(found)
    print(json.dumps({"seconds": time.perf_counter() - began}))
"""


ONE, TWO, TOKENIZERS, MAP = WAYS = ("one", "two", "pool", "datasets")
NAMES = {ONE: "one process", TWO: "two processes", TOKENIZERS: "tokenizers in a pool of two"}
NAMES |= {MAP: "datasets.map, two processes"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=Path, help="real texts, UTF-8, with empty lines between paragraphs")
    parser.add_argument("--megabytes", type=float, default=150.0, help="size of the text that is made of them")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="those to be run; default: all")
    parser.add_argument("--turns", type=int, default=1, help="how often each way runs")
    parser.add_argument("--datasets", metavar="PYTHON", help="a Python that has `datasets` and `tokenizers`")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench_tokenize-"))
    try:
        report(options, measure(options, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    text, tokenizer = folder / "text.txt", folder / "tokenizer.json"
    write_text(options.texts, text, options.megabytes * 1e6)
    write_tokenizer(text, tokenizer)
    ways = {
        ONE: (sys.executable, PREPARE, 1),
        TWO: (sys.executable, PREPARE, 2),
        TOKENIZERS: (sys.executable, POOL, 2),
        MAP: (options.datasets, DATASETS, 2),
    }
    ways = {name: way for name, way in ways.items() if name in options.ways and way[0]}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(options.turns):
        for name, (python, program, workers) in ways.items():
            found[name].append(run(folder, python, program, [str(text), str(tokenizer), str(workers)]))
    return found


def write_text(sources: list[Path], file: Path, size: float) -> None:
    parts = [part for source in sources for part in source.read_text(encoding="utf-8").split("\n\n") if part.strip()]
    draw, written = random.Random(0), 0
    with file.open("w", encoding="utf-8") as stream:
        while written < size:
            block = "\n\n".join(draw.sample(parts, min(len(parts), 5000))) + "\n\n"
            written += len(block.encode())
            stream.write(block)


def write_tokenizer(text: Path, file: Path) -> None:
    from bigctl.config import schema
    from bigctl.data.text import tokenization

    with text.open(encoding="utf-8") as stream:
        made = tokenization.train(schema.StreamTokenizer(type="bpe", size=8000), [stream.read(3_000_000)])
    made.save(str(file))


def run(folder: Path, python: str, program: str, arguments: list[str]) -> dict[str, float]:
    """One way, in an empty cache."""
    cache, script = folder / "cache", folder / "way.py"
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    script.write_text(program)
    environment = {
        **os.environ,
        "BIGCTL_CACHE_DIR": str(cache),
        "HF_HOME": str(cache),
        "TOKENIZERS_PARALLELISM": "false",
    }
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    command = [python, str(script), *arguments, str(cache)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def report(options: argparse.Namespace, found: dict[str, list[dict[str, float]]]) -> None:
    seconds = {name: statistics.median(each["seconds"] for each in runs) for name, runs in found.items()}
    two = seconds.get(TWO)
    ratios = {f"{NAMES[name]}, over two": value / two for name, value in seconds.items() if two and name != TWO}
    if options.json:
        print(json.dumps({"seconds": seconds, "ratios": ratios, "runs": found}, indent=1))
        return
    for name, value in seconds.items():
        print(f"{NAMES[name]:<28} {value:8.1f} s  {options.megabytes / value:6.1f} MB/s")
    for name, ratio in ratios.items():
        print(f"{name:<50} {ratio:5.2f}")
    own = {name: found[name][-1] for name in (ONE, TWO) if name in found}
    for name, run in own.items():
        print(
            f"time of the processor, {NAMES[name]}: {run['own']:.1f} s, and {run['others']:.1f} s of those it started"
        )
        print(f"... memory, at most the sum of all peaks: {run['megabytes']:,.0f} MB")
        print(f"... opened again, beyond imports: {run['again']:.2f} s")
    if len(own) == 2:
        idle = own[ONE]["own"] / (own[TWO]["own"] + own[TWO]["others"] / 2)
        print(f"on two cores with nothing else to do two processes are at least {idle:.2f} times as fast")


if __name__ == "__main__":
    main()
