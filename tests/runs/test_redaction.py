"""Folders of this machine are cut out of what is given away."""

from __future__ import annotations

import pytest

from bigctl.runs.redaction import without_folders


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("data.path=/home/ann/reviews/train.csv", "data.path=train.csv"),
        ("data.path=[/home/ann/a.csv,~/b/c.csv]", "data.path=[a.csv,c.csv]"),
        ("  path: '/home/ann/images/'", "  path: 'images'"),
        ("model.init_from=/srv/weights/minilm", "model.init_from=minilm"),
        ("data.path=s3://bucket/folder/x.parquet", "data.path=s3://bucket/folder/x.parquet"),
        ("data.path=https://host/a/b.csv", "data.path=https://host/a/b.csv"),
        ("data.path=hdf5/of/mine.csv", "data.path=hdf5/of/mine.csv"),
        ("optimizer.freeze=[encoder/layers/0/*]", "optimizer.freeze=[encoder/layers/0/*]"),
        ("recipe.prompt=/help", "recipe.prompt=/help"),
        ("tokens/s and 3/4/5", "tokens/s and 3/4/5"),
    ],
)
def test_a_file_is_left_by_its_name(text: str, kept: str) -> None:
    assert without_folders(text) == kept
