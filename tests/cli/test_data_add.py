"""`bigctl data add` looks at files, says what it assumes, and writes a preset that the other commands can use."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from bigctl.data.look import row_beginnings
from bigctl.data.look.inspection import inspect
from bigctl.errors import DataError
from tests.conftest import Cli

TABLE = "x,label\n" + "".join(f"{i},{i % 2}\n" for i in range(20))
DRAW = random.Random(0)
WORDS = ["a", "good", "film", "with", "a", "plot", "that", "was", "long", "and", "very", "slow", "in", "its", "end"]


def sentence(words: int = 9) -> str:
    return " ".join(DRAW.choices(WORDS, k=words))


def added(bigctl: Cli, name: str, path: str, *more: str) -> dict[str, object]:
    """What the command tells; and that the preset it wrote composes to just that."""
    told = bigctl.json("data", "add", name, path, *more)
    preset = yaml.safe_load((bigctl.folder / str(told["file"])).read_text(encoding="utf-8"))
    assert preset.pop("defaults") == [f"_{told['kind']}", "_self_"] and preset == told["keys"]
    return told


def test_table_with_semicolons_is_a_regression_that_the_printed_commands_show(bigctl: Cli) -> None:
    rows = [f"{DRAW.choice(['Rome', 'Paris'])};{DRAW.random():.3f};{DRAW.random() * 1e5:.2f}" for _ in range(60)]
    (bigctl.folder / "homes.csv").write_text("\n".join(["city;area;amount", *rows]))
    told = added(bigctl, "homes", "homes.csv")
    assert told["keys"] == {"path": "homes.csv", "separator": ";", "label": "amount"}
    assert "amount" in str(told["summary"]) and len(told["assumed"]) == 3  # type: ignore[arg-type]
    looks, trains = told["commands"]  # type: ignore[misc]
    assert trains == "bigctl train recipe=mlp_cls data=homes model.head=regression --config-dir presets"
    assert bigctl.json(*looks.split()[1:])["splits"]["train"]["examples"] > 0


def test_texts_in_any_format_have_their_columns_found(bigctl: Cli) -> None:
    rows = [{"id": i, "review": sentence(), "stars": i % 3} for i in range(40)]
    lines = "\n".join(map(json.dumps, rows))
    (bigctl.folder / "r.jsonl").write_text(lines)
    with gzip.open(bigctl.folder / "r.csv.gz", "wt") as stream:
        stream.write("\n".join(["id,review,stars", *(f"{r['id']},{r['review']},{r['stars']}" for r in rows)]))
    for name, path in (("lines", "r.jsonl"), ("packed", "r.csv.gz")):
        told = added(bigctl, name, path)
        assert told["keys"] == {"path": path, "label": "stars", "text": "review"}
        assert "recipe=ngram_cls" in str(told["commands"])
    titles = ["".join(DRAW.choices("这是一个很好的电影我们都喜欢看书", k=12)) for _ in range(30)]
    table = "\n".join(["标题,类别", *(f"{title},{'体育财经'[i % 2 * 2 :][:2]}" for i, title in enumerate(titles))])
    (bigctl.folder / "zh.csv").write_text(table, encoding="utf-8")
    assert added(bigctl, "zh", "zh.csv")["keys"] == {"path": "zh.csv", "label": "类别", "text": "标题"}


def test_lists_of_json_lines_are_tags_or_several_classes(bigctl: Cli) -> None:
    sentences = [
        {"words": WORDS[: 3 + i % 5], "ner": ["O", "B-X", "O", "O", "O", "O", "O"][: 3 + i % 5]} for i in range(30)
    ]
    topics = [{"text": sentence(), "topics": ["a", "b", "c"][: i % 3]} for i in range(30)]
    (bigctl.folder / "tags.jsonl").write_text("\n".join(map(json.dumps, sentences)))
    (bigctl.folder / "topics.jsonl").write_text("\n".join(map(json.dumps, topics)))
    told = added(bigctl, "ner", "tags.jsonl")
    assert told["keys"] == {"path": "tags.jsonl", "tokens": "words", "tags": "ner", "label": None}
    told = added(bigctl, "topics", "topics.jsonl")
    assert told["keys"] == {"path": "topics.jsonl", "labels": "topics", "label": None, "text": "text"}
    assert bigctl.json("data", "topics", "--config-dir", "presets")["splits"]["train"]["without_class"] > 0


def test_of_a_conll_file_columns_and_tags_are_told(bigctl: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    (bigctl.folder / "a.conll").write_text("it\tx\tO\nRome\tx\tB-LOC\n\n" * 200)
    told = added(bigctl, "a", "a.conll", "data.tokens=0")
    assert told["keys"] == {"path": "a.conll", "tokens": 0} and "2 different tags: O, B-LOC" in str(told["found"])
    assert told["assumed"] == ["the tags are in the last column (data.tags=COLUMN)"]
    monkeypatch.setattr(row_beginnings, "BEGINNING", 1000)
    found = inspect(str(bigctl.folder / "a.conll"), {})
    assert found.summary == "in the first 994 B 48 sentences of 95 words with tags"
    (bigctl.folder / "b.conllu").write_text(
        ("1\tit\t_\tPRON" + 6 * "\t_" + "\n2\tis\t_\tVERB" + 6 * "\t_" + "\n\n") * 200
    )
    names = inspect(str(bigctl.folder / "b.conllu"), {"tokens": "FORM", "tags": "UPOS"})  # as in a smaller file
    assert names.summary.startswith("in the first 9") and names.found == ("2 different tags: PRON, VERB",)


def test_pictures_of_many_sizes_are_resized_and_folders_are_counted(bigctl: Cli) -> None:
    for place in range(8):
        file = bigctl.folder / "pets" / ("cat", "dog")[place % 2] / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((70 + place, 90, 3), place, np.uint8)).save(file)
    told = added(bigctl, "pets", "pets")
    assert told["keys"] == {"path": "pets", "image_size": [64, 64]} and "cat: 4 pictures" in str(told["found"])
    same = added(bigctl, "pets2", "pets", "data.image_size=[32,48]")
    assert same["keys"] == {"path": "pets", "image_size": [32, 48]}


def test_files_of_splits_in_a_folder_and_long_texts(bigctl: Cli) -> None:
    folder = bigctl.folder / "set"
    folder.mkdir()
    for split, rows in (("train", 30), ("test", 9)):
        body = "\n".join(f"{DRAW.random():.3f},{'ab'[i % 2]}" for i in range(rows))
        (folder / f"{split}.csv").write_text(f"x,kind\n{body}\n")
    assert added(bigctl, "two", "set")["keys"] == {
        "path": "set/train.csv", "test_path": "set/test.csv", "label": "kind",
    }  # fmt: skip
    (bigctl.folder / "novel.txt").write_text("Once upon a time. " * 200)
    assert added(bigctl, "novel", "novel.txt")["commands"][1].startswith("bigctl train recipe=gpt_lm data=novel")  # type: ignore[index]


def test_parquet_keeps_stored_types(bigctl: Cli) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    png = b"\x89PNG"
    columns = {"code": ["1", "2"] * 20, "value": [i / 3 for i in range(40)], "species": ["a", "b"] * 20}
    pq.write_table(pa.table(columns), bigctl.folder / "t.parquet")
    told = added(bigctl, "t", "t.parquet")
    assert told["keys"] == {"path": "t.parquet", "label": "species"} and "code: category" in str(told["found"])
    pq.write_table(pa.table({"picture": [png] * 40, "species": ["a", "b"] * 20}), bigctl.folder / "p.parquet")
    assert added(bigctl, "p", "p.parquet")["keys"] == {"path": "p.parquet", "label": "species", "image": "picture"}


def test_a_large_table_is_looked_at_by_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_beginnings, "BEGINNING", 2000)
    rows = [f"{i % 7},{'yes' if i % 2 else 'no'}" for i in range(1000)] + ["broken,row,beyond"]
    (tmp_path / "big.csv").write_text("\n".join(["x,answer", *rows]))
    seen = row_beginnings.of_file(tmp_path / "big.csv", "csv", {})
    assert seen.cut and seen.looked_at < 400 and 900 < seen.total < 1100
    assert [column.kind for column in seen.columns] == ["number", "category"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["x"], "lacks a path"),
        (["x", "a", "b"], "takes one path"),
        (["X", "t.csv"], "cannot name a data set"),
        (["digits", "t.csv"], "there is a data set named 'digits' already"),
        (["x", "t.csv", "data.labl=y"], "there is no key 'data.labl'"),
        (["x", "t.csv", "--prepare"], "looks at files and no more"),
    ],
)
def test_what_is_typed_wrongly_writes_nothing(bigctl: Cli, words: list[str], told: str) -> None:
    (bigctl.folder / "t.csv").write_text(TABLE)
    assert told in bigctl("data", "add", *words, code=2).stderr
    assert not (bigctl.folder / "presets").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("header.csv", "x,label\n", "there are no rows"),
        ("nothing.csv", None, "no such file"),
        ("notes.pdf", "%PDF", "no kind of data set is known by .pdf"),
        ("ids.csv", "id,name\n" + "".join(f"{i},n{i}\n" for i in range(90)), "which column is the target"),
        ("bare.csv", "".join(f"{i},{i + 5}\n" for i in range(20)), "which is no name of a column"),
        ("empty.csv", "", "the file is empty"),
        ("lines.jsonl", '{"a": 1}\n[1]\n', "this is a list, not an object"),
        ("lists.jsonl", '{"a": [1], "b": [1, 2]}\n', "hold lists"),
        ("torn.parquet", "PAR1", "damaged"),
        ("packed.csv.gz", "\x1f\x8b no", "cannot be read"),
    ],
)
def test_what_cannot_be_told_is_asked_for(tmp_path: Path, name: str, content: str | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(DataError) as raised:
        inspect(str(tmp_path / name), {})
    assert told in str(raised.value) and name in str(raised.value)


def test_a_preset_that_is_there_stays(bigctl: Cli) -> None:
    file = Path(bigctl.folder, "mine", "data", "t.yaml")
    file.parent.mkdir(parents=True)
    file.write_text("# mine\n")
    (bigctl.folder / "t.csv").write_text(TABLE)
    failed = bigctl("data", "add", "t", "t.csv", "--config-dir", "mine", code=2)
    assert "is there already" in failed.stderr and file.read_text() == "# mine\n"
