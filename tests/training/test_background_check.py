"""Prepared data that was opened unread is read while the first epoch trains on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import bigctl
from bigctl.data import background_check, cache
from bigctl.errors import DataError

KEYS = ["recipe=mlp_cls", "data=breast_cancer", "model.hidden=[4]", "train.batch_size=32", "train.log_every=1"]


@pytest.fixture(autouse=True)
def every_set_is_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BIGCTL_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "_LARGE", 0)
    monkeypatch.setattr(background_check, "_IDLE", 0.0)


def test_damage_that_does_not_show_from_outside_ends_the_first_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says which file; the next start makes the set anew, and the results are those of sound data."""
    checks: list[background_check.BackgroundCheck] = []
    begun = background_check.begin

    def begin(path: str) -> background_check.BackgroundCheck | None:
        found = begun(path)
        assert found is not None
        checks.append(found)
        found._thread.join(10)
        return found

    monkeypatch.setattr(background_check, "begin", begin)

    def train(name: str, steps: int = 2) -> dict[str, float]:
        config = bigctl.compose([*KEYS, f"train.steps={steps}"])
        return dict(bigctl.train(config, run_dir=str(tmp_path / name))["metrics"])

    sound = train("first")
    assert len(checks) == 1 and not checks[0].running
    (folder,) = (file.parent for file in (tmp_path / "cache" / "data").glob("*/meta.json"))
    file, digests = folder / "train.inputs.npy", cache.trusted_digests(folder)
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    cache._keep_sound(folder, digests)  # as it was found when it was read last
    with pytest.raises(DataError, match=r"is damaged: train\.inputs\.npy is not what was prepared") as told:
        train("second")
    assert "\n" not in str(told.value) and not checks[1].running
    capsys.readouterr()
    assert train("third") == sound
    assert "is damaged; making it again" in capsys.readouterr().err
    assert len(checks) == 3
    train("third", steps=60)  # goes on within the second epoch
    state = json.loads((tmp_path / "third" / "run.json").read_text())
    assert state["status"] == "complete"


def test_a_set_that_is_removed_meanwhile_is_not_damaged(tmp_path: Path) -> None:
    """As by `data clean` while the first epoch trains."""
    (tmp_path / "there").write_bytes(b"")
    digests = {"there": hashlib.sha256(b"").hexdigest(), "gone": "0" * 64}
    check = background_check.BackgroundCheck(tmp_path, digests)
    check._thread.join(10)
    assert not check.running
    check.require_sound()
    (tmp_path / "gone").write_bytes(b"other")
    check = background_check.BackgroundCheck(tmp_path, digests)
    check._thread.join(10)
    with pytest.raises(DataError, match="gone is not what was prepared"):
        check.require_sound()
