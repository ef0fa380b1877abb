"""What tests of exports and of compressed runs share."""

from __future__ import annotations

import pytest

from bigctl.inference.exporters import beside


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that are not about how long something takes."""
    monkeypatch.setattr(beside, "SECONDS", 0.02)
