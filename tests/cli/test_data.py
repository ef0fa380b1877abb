"""`bigctl data` shows what a model will be given, and manages its prepared form."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigctl.data import preview
from tests import topics
from tests.conftest import Cli

PRICES = ("csv", "data.path=homes.csv", "data.label=price", "model=mlp", "model.head=regression")


@pytest.fixture
def own(bigctl: Cli, tmp_path: Path) -> Cli:
    """The command with a cache of its own, so that what it removes is nobody else's."""

    class Own(Cli):
        def __call__(self, *arguments, env=None, **options):  # type: ignore[no-untyped-def]
            return super().__call__(
                *arguments, env={"BIGCTL_CACHE_DIR": str(tmp_path / "cache"), **(env or {})}, **options
            )

    return Own(bigctl.folder)


@pytest.fixture
def homes(bigctl: Cli) -> Path:
    rows = [[f"{40 + i}", "" if i % 7 == 0 else ("north", "south")[i % 2], f"{1000 * i}"] for i in range(60)]
    with (bigctl.folder / "homes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["size", "side", "price"], *rows])
    return bigctl.folder / "homes.csv"


def test_packaged_set_tells_sizes_classes_and_source(bigctl: Cli) -> None:
    facts = bigctl.json("data", "digits")
    assert bigctl.json("data", "data=digits")["fingerprint"] == facts["fingerprint"]
    assert sum(split["examples"] for split in facts["splits"].values()) == 1797
    assert all(sum(split["classes"]) == split["examples"] for split in facts["splits"].values())
    assert facts["classes"] == list("0123456789") and facts["shape"] == [8, 8, 1]
    assert 0 < facts["mean"][0] < 1 and "scikit-learn" in facts["info"]["source"]
    assert Path(facts["path"]).is_dir() and facts["bytes"] > 1797 * 64
    text = bigctl("data", "digits").stdout
    assert facts["fingerprint"] in text and facts["path"] in text and "CC BY" in text


def test_recipe_names_its_data(bigctl: Cli) -> None:
    assert "breast" in bigctl.json("data", "recipe=mlp_cls")["info"]["title"].lower()


def test_table_shows_rows_as_they_are_in_the_file(bigctl: Cli, homes: Path) -> None:
    facts = bigctl.json("data", *PRICES)
    assert facts["classes"] is None and facts["splits"]["train"]["target"]["max"] <= 59_000
    size, side = facts["columns"]
    assert (size["name"], size["kind"], side["name"], side["kind"]) == ("size", "numeric", "side", "categorical")
    assert side["missing"] and set(side["samples"]) <= {"north", "south", ""}
    sides = {row["size"]: row["side"] for row in csv.DictReader(homes.open())}
    assert len(size["samples"]) == 5 and [sides[value] for value in size["samples"]] == list(side["samples"])


@pytest.mark.parametrize(("given", "key"), [((), "data.path"), (("data.path=homes.csv",), "data.label")])
def test_missing_key_is_named(bigctl: Cli, homes: Path, given: tuple[str, ...], key: str) -> None:
    assert f"{key} must be given" in bigctl("data", "csv", *given, code=2).stderr


def test_wrong_names_are_answered_with_close_ones(bigctl: Cli) -> None:
    assert "mnist" in bigctl("data", "mnst", code=2).stderr
    assert "no data set is chosen" in bigctl("data", "model=mlp", code=2).stderr


def test_list_tells_what_is_prepared(own: Cli, homes: Path) -> None:
    assert all(not entry["caches"] for entry in own.json("data")["known"])
    own("data", "digits", "--prepare")
    own("data", "csv", "data.path=homes.csv", "data.label=side", "data.drop=[price]", code=2)  # some have no side
    own("data", *PRICES)
    found = own.json("data")
    assert [e["name"] for e in found["known"] if e["caches"]] == ["digits"]
    assert [e["label"] for e in found["own"]] == ["homes"]
    assert "homes" in own("data").stdout


def test_download_waits_to_be_asked_for(own: Cli) -> None:
    assert own.json("data", "cifar10")["prepared"] is False
    assert "--prepare" in own("data", "cifar10").stdout


def test_clean_removes_this_configuration_only(own: Cli, homes: Path) -> None:
    whole, part = own.json("data", *PRICES), own.json("data", *PRICES, "data.split_seed=1")
    assert own.json("data", *PRICES, "--clean")["freed_bytes"] == whole["bytes"]
    assert not Path(whole["path"]).exists() and Path(part["path"]).exists()
    assert "nothing to remove" in own("data", *PRICES, "--clean").stdout
    assert "no data set is named" in own("data", "--clean", code=2).stderr
    own("data", "--clean", "--all")
    assert not Path(part["path"]).exists() and not own.json("data")["bytes"]


def test_rebuild_gives_the_same_data(own: Cli, homes: Path) -> None:
    first, again = own.json("data", *PRICES, "--prepare"), own.json("data", *PRICES, "--rebuild")
    assert first["fingerprint"] == again["fingerprint"] and again["prepared_now"]
    assert not own.json("data", *PRICES)["prepared_now"]


def test_contact_sheet_has_a_row_a_class(bigctl: Cli) -> None:
    facts = bigctl.json("data", "digits", "--contact-sheet", "sheet.png")
    with Image.open(bigctl.folder / "sheet.png") as sheet:
        assert sheet.height == 4 + 10 * 68 and sheet.width > 8 * 68
        pixels = np.asarray(sheet)
    first = np.load(Path(facts["path"]) / "train.inputs.npy")
    labels = np.load(Path(facts["path"]) / "train.label.npy")
    left = pixels.shape[1] - 8 * 68
    shown = pixels[4 : 4 + 64 : 8, left : left + 64 : 8, 0]
    assert np.array_equal(shown, first[np.flatnonzero(labels == 0)[0], :, :, 0])  # unchanged but for whole pixels


def test_contact_sheet_that_cannot_be_made_is_refused(bigctl: Cli) -> None:
    for arguments in (("breast_cancer", "x.png"), ("digits", "x.jpg"), ("digits", "no/such/x.png")):
        assert "--contact-sheet" in bigctl("data", arguments[0], "--contact-sheet", arguments[1], code=2).stderr


def test_the_augmented_sheet_shows_images_beside_what_training_sees_of_them(bigctl: Cli) -> None:
    still = [f"recipe.augment.{name}=0" for name in ("rotate", "scale", "shift")]
    recipe = ["data", "digits", "recipe=cnn_cls", *still]
    told = bigctl.json(*recipe, "recipe.augment.flip=horizontal", "--augmented", "seen.png")
    assert told["augmented"] == "seen.png" and told["contact_sheet"] is None
    with Image.open(bigctl.folder / "seen.png") as sheet:
        pixels = np.asarray(sheet)
    first, labels = (np.load(Path(told["path"]) / f"train.{name}.npy") for name in ("inputs", "label"))
    left, mirrored = pixels.shape[1] - 8 * 68, 0
    for row in range(10):
        image = first[np.flatnonzero(labels == row)[0], :, :, 0]
        top = 4 + 68 * row
        cells = [pixels[top : top + 64 : 8, x : x + 64 : 8, 0] for x in range(left, left + 8 * 68, 68)]
        np.testing.assert_array_equal(cells[0], image)
        assert all(np.array_equal(cell, image) or np.array_equal(cell, image[:, ::-1]) for cell in cells[1:])
        mirrored += sum(np.array_equal(cell, image[:, ::-1]) for cell in cells[1:])
    assert 20 < mirrored < 50  # of 70


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["digits"], "recipe=cnn_cls"),
        (["digits", "recipe=cnn_cls", "recipe.augment.hue=0.1"], "recipe.augment.hue"),
        (["digits", "recipe=cnn_cls", "recipe.augment.magnitude=31"], "recipe.augment.magnitude"),
        (["breast_cancer", "recipe=mlp_cls"], "only image data"),
    ],
)
def test_an_augmented_sheet_that_cannot_be_made_is_refused(bigctl: Cli, arguments: list[str], told: str) -> None:
    assert told in bigctl("data", *arguments, "--augmented", "seen.png", code=2).stderr
    assert not (bigctl.folder / "seen.png").exists()


def test_looking_at_data_does_not_start_jax(bigctl: Cli) -> None:
    import subprocess
    import sys

    code = "import sys; from bigctl.cli.main import main; main(['data', 'digits']); assert 'jax' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=bigctl.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------------------- texts


def test_texts_are_shown_with_their_lengths(own: Cli) -> None:
    topics.write(own.folder)
    facts = own.json("data", *topics.DATA)
    assert facts["kind"] == "text" and facts["classes"] == ["kitchen", "sky"] and facts["tokenizer"] is None
    lengths = sorted(len(text) for text, _ in topics.rows())
    assert min(part["characters"]["min"] for part in facts["splits"].values()) == lengths[0]
    assert max(part["characters"]["max"] for part in facts["splits"].values()) == lengths[-1]
    truth = dict(topics.rows())
    assert [truth[text] for entry in facts["texts"] for text in entry["texts"]] == ["kitchen"] * 2 + ["sky"] * 2
    out = own("data", *topics.DATA).stdout
    assert facts["texts"][0]["texts"][0] in out and "{" not in out and "duplicates" in out


def test_recipe_adds_the_lengths_in_tokens(own: Cli) -> None:
    topics.write(own.folder)
    recipe = ["recipe=lstm_cls", "recipe.tokenizer.max_length=8", "recipe.tokenizer.size=20"]
    facts = own.json("data", *recipe, *topics.DATA)
    assert facts["tokenizer"]["vocab_size"] == 20
    # a Chinese character is a word of its own, and there are marks of beginning and end
    words = [len(re.findall(r"[a-z]+|[^a-z ]", text)) + 2 for text, _ in topics.rows()]
    parts = list(facts["splits"].values())
    assert sum(round(part["cut"] * part["examples"]) for part in parts) == sum(count > 8 for count in words)
    assert max(part["tokens"]["max"] for part in parts) == 8 and all(0 < part["unknown"] < 1 for part in parts)
    out = own("data", *recipe, *topics.DATA).stdout
    assert "words, 20 tokens" in out and "8 tokens at most" in out and "{" not in out


def test_clean_removes_texts_and_tokens(own: Cli) -> None:
    topics.write(own.folder)
    plain, tokens = own.json("data", *topics.DATA), own.json("data", "recipe=lstm_cls", *topics.DATA)
    assert plain["path"] != tokens["path"] and own.json("data", "recipe=lstm_cls", *topics.DATA)["bytes"]
    freed = own.json("data", "recipe=lstm_cls", *topics.DATA, "--clean")
    assert freed["freed_bytes"] == plain["bytes"] + tokens["bytes"] and not own.json("data")["bytes"]


def test_shown_text_is_one_line_of_the_terminal() -> None:
    assert preview.one_line("two\nlines\tand \x1b[31mred", 40) == "two lines and [31mred"
    assert preview.one_line("short", 5) == "short" and preview.one_line("longer text", 8) == "longe..."
    assert preview.one_line("今天天气很好今天", 10) == "今天天..." and preview.one_line("", 10) == ""
