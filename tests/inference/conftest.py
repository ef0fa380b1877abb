"""What tests of exports and of compressed runs share."""

from __future__ import annotations

import pytest

from bigctl.inference.exporters import beside, peak_memory


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about how long something takes, or how much memory."""
    monkeypatch.setattr(beside, "SECONDS", 0.02)
    monkeypatch.setattr(peak_memory, "measured", lambda write, inputs: None)
