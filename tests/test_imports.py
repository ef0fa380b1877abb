"""What a large import costs beyond reading it."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from bigctl import imports

NOTED = "import sys\nsys.modules['torch_was_imported'] = sys\n"
TRAINS = """
import gc, sys
from bigctl.cli.main import main
sys.argv[1:] = ["train", "recipe=mlp_cls", "data=breast_cancer", "model.hidden=[4]", "train.steps=2", "--quiet"]
code = main()
brought = sorted({"torch", "torch_was_imported", "tensorflow", "matplotlib"} & set(sys.modules))
print(code, brought, gc.isenabled(), gc.get_freeze_count() > 100_000, "tensorboardX" in sys.modules)
"""


def test_a_training_imports_no_other_framework_that_happens_to_be_installed(tmp_path: Path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(NOTED)
    given = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{TRAINS}"]
    done = subprocess.run(given, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 [] True True True"


def test_what_is_imported_without_a_package_does_not_find_it_and_later_imports_do(tmp_path, monkeypatch):
    (tmp_path / "brought_along.py").write_text("")
    brings = "try:\n    import brought_along\nexcept ImportError:\n    brought_along = None\n"
    (tmp_path / "brings.py").write_text(brings)
    monkeypatch.syspath_prepend(str(tmp_path))
    with imports.without("brought_along"):
        import brings
    assert brings.brought_along is None
    import brought_along

    with imports.without("brought_along"):  # where it is there already it stays what it is
        assert sys.modules["brought_along"] is brought_along
    assert sys.modules["brought_along"] is brought_along


@pytest.mark.parametrize("own", [True, False])
def test_searches_for_garbage_rest_in_our_own_process_alone(own: bool, monkeypatch):
    monkeypatch.setattr(imports, "_own", own)
    before = gc.get_freeze_count()
    with pytest.raises(ValueError), imports.kept():
        assert gc.isenabled() is not own
        raise ValueError
    assert gc.isenabled() and (gc.get_freeze_count() > before) is own


@pytest.mark.parametrize("searched", [True, False])
def test_searches_for_garbage_rest_while_a_program_is_traced(searched: bool):
    (gc.enable if searched else gc.disable)()
    try:
        with pytest.raises(ValueError), imports.unsearched():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is searched
    finally:
        gc.enable()
