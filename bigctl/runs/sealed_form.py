"""The form of an encrypted export, for who writes and reads it and for who checks it without the passphrase."""

from __future__ import annotations

MAGIC = b"bigctl-sealed-1\n"
R, P = 8, 1
"""Parameters of scrypt that are the same in all."""
HEAD = len(MAGIC) + 3 + 16 + 7
"""Bytes of the head: the above and the logarithm of N, a salt, the beginning of nonces."""
PROOF = 32
"""Bytes that tell a wrong passphrase, after the head."""
CHUNK, TAG = 1 << 20, 16
"""Bytes that are encrypted at once, and that each chunk has more."""
