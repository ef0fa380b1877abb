"""Text for a terminal."""

from __future__ import annotations

from bigctl.formatting import printable


def test_a_text_cannot_command_a_terminal() -> None:
    written = "a\x1b[31mb\x07\x9bc\r\nd\t\N{GREEK SMALL LETTER ALPHA}\N{CJK UNIFIED IDEOGRAPH-4E2D}"
    assert (
        printable(written)
        == "a\ufffd[31mb\ufffd\ufffdc\ufffd\nd\t\N{GREEK SMALL LETTER ALPHA}\N{CJK UNIFIED IDEOGRAPH-4E2D}"
    )
