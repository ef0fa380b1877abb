"""`recipe=bert_cls` against Hugging Face's Trainer with torch: the same weights, texts, epochs, batch and limit.

Every figure is that of a process of its own, and the two are started in turn. The Trainer runs as its documentation has
it, padding each batch to its longest text, and once more with its own sampler of texts of like length; the better of
the two is compared. Ours is started once with an empty compile cache ("cold") and then with a full one ("warm").

training: from the first step to the last, compiling included, evaluation excluded. first step: from the start of the
process to the end of the first step. memory: the largest resident size of the process. processor: seconds of all cores
from the start of the process to its end, imports, compiling and, for ours, evaluation and the test split included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Any

import _bench

EXAMPLES = """\
examples (needs the packages of the extra [bench]):
  python scripts/bench_text.py
  python scripts/bench_text.py --steps 40 --rounds 1
"""

OURS = (
    """
import json, os, resource, sys, time
start = time.time()
from bigctl.parallel import host_memory
host_memory.keep_memory()  # as the command does
"""
    + _bench.AT_FIRST_STEP
    + """
times = {}
at_first_step(lambda: times.update(first=time.time() - start))
import bigctl
summary = bigctl.train(bigctl.compose(sys.argv[1:]), "run")
spent = summary["timings"]
steps = summary["step"]
times["training"] = spent["train"] + spent["compile"] + spent["data_wait"]
times["steps_alone"] = spent["train"]
used = resource.getrusage(resource.RUSAGE_SELF)
times["memory"], times["processor"] = used.ru_maxrss / 1024, used.ru_utime + used.ru_stime
print("RESULT " + json.dumps({**times, "steps": steps}))
"""
)

PEER = """
import json, resource, sys, time
start = time.time()
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.utils import logging
logging.set_verbosity_error()
options = json.loads(sys.argv[1])
torch.set_num_threads(options["threads"])
tokenizer = AutoTokenizer.from_pretrained(options["weights"])
model = AutoModelForSequenceClassification.from_pretrained(options["weights"], num_labels=2)
rows = json.load(open(options["texts"]))
encoded = tokenizer(rows["text"], truncation=True, max_length=options["max_length"])
data = [
    {"input_ids": ids, "attention_mask": mask, "labels": label}
    for ids, mask, label in zip(encoded["input_ids"], encoded["attention_mask"], rows["label"])
]
times = {}
class Clock(TrainerCallback):
    def on_train_begin(self, args, state, control, **rest):
        times["begin"] = time.time()
    def on_step_end(self, args, state, control, **rest):
        times.setdefault("first", time.time() - start)
        times["end"] = time.time()
more = {"train_sampling_strategy": "group_by_length"} if options["grouped"] else {}
arguments = TrainingArguments(
    output_dir="peer", use_cpu=True, per_device_train_batch_size=options["batch_size"], learning_rate=5e-5,
    weight_decay=0.01, max_grad_norm=1.0, lr_scheduler_type="linear", warmup_steps=options["warmup"],
    num_train_epochs=1, max_steps=options["steps"], save_strategy="no", eval_strategy="no", logging_steps=50,
    report_to=[], disable_tqdm=True, seed=0, **more,
)
Trainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer, callbacks=[Clock()]).train()
spent = resource.getrusage(resource.RUSAGE_SELF)
peak, processor = spent.ru_maxrss / 1024, spent.ru_utime + spent.ru_stime
training = times["end"] - times["begin"]
print("RESULT " + json.dumps({"training": training, "first": times["first"], "memory": peak, "processor": processor}))
"""

_COLUMNS = ("training", "first", "memory", "processor")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="rotten_tomatoes", help="a packaged set of texts (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="examples (default %(default)s)")
    parser.add_argument("--max-length", type=int, default=128, help="tokens (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="default: %(default)s, those of the recipe")
    parser.add_argument("--steps", type=int, help="so many steps instead")
    parser.add_argument("--rounds", type=int, default=1, help="of each (default %(default)s)")
    options = parser.parse_args()
    _bench.print_facts("bigctl", "jax", "transformers", "torch")

    import bigctl
    from bigctl.engine import resolve
    from bigctl.interop.sources import MINILM
    from bigctl.packages import fetch_folder

    overrides = [
        "recipe=bert_cls", f"data={options.data}", f"train.batch_size={options.batch_size}",
        f"recipe.tokenizer.max_length={options.max_length}", "train.epochs=1",
    ]  # fmt: skip
    config = bigctl.compose(overrides)
    dataset = resolve.resolve(config).dataset
    size = dataset.size("train")
    steps = options.steps or round(options.epochs * size / options.batch_size)
    overrides[-1] = f"train.steps={steps}"
    overrides += [f"eval.every={steps}", f"checkpoint.every={steps}"]
    texts, labels = dataset.texts["train"][0], dataset.splits["train"]["label"].tolist()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "texts.json")
        with open(file, "w") as stream:
            json.dump({"text": [texts[n] for n in range(size)], "label": labels}, stream)
        peer = {
            "weights": str(fetch_folder(MINILM)), "texts": file, "steps": steps,
            "max_length": options.max_length, "batch_size": options.batch_size, "warmup": round(0.1 * steps),
            "threads": _bench.cores(),
        }  # fmt: skip
        for number in range(options.rounds):
            with tempfile.TemporaryDirectory() as cache:
                results.setdefault("bigctl, cold", []).append(_run(OURS, overrides, cache))
                results.setdefault("bigctl, warm", []).append(_run(OURS, overrides, cache))
            for name, grouped in (("Trainer", False), ("Trainer, grouped", True)):
                found = _run(PEER, [json.dumps({**peer, "grouped": grouped})], folder)
                results.setdefault(name, []).append(found)
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
    rows = [
        (name, *(statistics.median(run[what] for run in runs) for what in _COLUMNS)) for name, runs in results.items()
    ]
    print(f"{options.data}: {steps} steps of {options.batch_size}, at most {options.max_length} tokens")
    _bench.table(("", "training [s]", "first step [s]", "memory [MiB]", "processor [s]"), rows)
    training = {name: value for name, value, *_ in rows}
    best = min(training["Trainer"], training["Trainer, grouped"])
    for name in ("bigctl, cold", "bigctl, warm"):
        plain = training["Trainer"] / training[name]
        print(f"Trainer / {name}: {plain:.2f} as documented, {best / training[name]:.2f} at its best")
    alone = statistics.median(run["steps_alone"] for run in results["bigctl, warm"])
    print(f"without compiling: {training['Trainer'] / alone:.2f} and {best / alone:.2f}; target 1.3")


def _run(code: str, arguments: list[str], compiled: str) -> dict[str, Any]:
    """One process in a folder of its own, its compiled programs in `compiled`; what it reports."""
    from bigctl.cache_root import cache_root

    # Prepared data is shared with other runs, compiled programs are this measurement's own.
    cache = os.path.join(compiled, "cache")
    os.makedirs(cache, exist_ok=True)
    for name in ("data", "packages"):
        link = os.path.join(cache, name)
        if not os.path.lexists(link):
            os.symlink(cache_root() / name, link)
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "BIGCTL_CACHE_DIR": cache, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))[len("RESULT ") :])


if __name__ == "__main__":
    main()
