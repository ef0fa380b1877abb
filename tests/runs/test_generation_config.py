"""What a run keeps of the weights that it started from: special tokens, ends and the chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigctl.errors import RunError
from bigctl.runs import generation_config
from bigctl.runs.directory import RunDirectory
from bigctl.runs.generation_config import GenerationConfig

DESCRIBED = {"type": "bpe", "sha256": "0", "vocab_size": 9, "eos": 4, "unk": 5}


def test_the_end_of_documents_is_an_end_beside_those_of_the_weights(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert generation_config.read_generation_config(run, DESCRIBED) == GenerationConfig({"eos": 4, "unk": 5}, (4,))
    generation_config.write_generation_config(
        run, GenerationConfig({"bos": 1, "eos": 2}, (2, 3), "{{ messages }} 你好")
    )
    assert generation_config.read_generation_config(run, DESCRIBED) == GenerationConfig(
        {"bos": 1, "eos": 2, "unk": 5}, (2, 3, 4), "{{ messages }} 你好"
    )


@pytest.mark.parametrize(
    "content", ["", "[]", '{"special": {}}', '{"special": {"eos": "x"}, "ends": []}', '{"ends": 3}']
)
def test_a_damaged_file_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    run = RunDirectory(tmp_path)
    run.generation.write_text(content)
    with pytest.raises(RunError, match=r"generation.json: cannot be read \(bring it back") as caught:
        generation_config.read_generation_config(run, DESCRIBED)
    assert "\n" not in str(caught.value)
