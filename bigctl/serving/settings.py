"""How a server is set: limits, keys and what is logged. Free of jax and of starlette."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bigctl.errors import ConfigError

KEYS_VARIABLE = "BIGCTL_API_KEYS"
"""Environment variable with keys, separated by commas."""


_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Settings:
    """What the command line says about a server.

    Attributes:
        host, port: where it listens; port 0 takes a free one.
        max_body: bytes of a request.
        max_queue: requests that may wait for each model.
        slots: texts that a language model writes at once.
        max_instances: examples of one request.
        drain: seconds that requests in flight have after SIGTERM.
        keys: of which a client must know one; none for everybody.
        log_contents: whether log lines hold what was asked.
        allowed_hosts: names that requests may be addressed to besides those of this machine; needed only where it
            listens on this machine alone, without keys.
        reload: seconds between two looks for newer weights; 0 for none.
        passphrase: of encrypted exports.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    max_body: int = 16 * 2**20
    max_queue: int = 256
    slots: int = 8
    max_instances: int = 1024
    drain: float = 30.0
    keys: tuple[bytes, ...] = ()
    log_contents: bool = False
    allowed_hosts: tuple[str, ...] = ()
    reload: float = 10.0
    passphrase: str | None = field(default=None, repr=False)

    def answers_to(self, host: str) -> bool:
        """Whether the Host header is one that this server goes by.

        A page of a stranger can have its own name resolve to 127.0.0.1 and then read what a server there answers (DNS
        rebinding); its requests bear that name. Who needs a key, or who listens to other machines, is not open to it.
        """
        if self.keys or not self._local:
            return True
        name = host.rsplit("]", 1)[0].lstrip("[") if host.startswith("[") else host.split(":", 1)[0]
        return name.lower() in (*_LOOPBACK, self.host.lower(), *map(str.lower, self.allowed_hosts), "")

    @cached_property
    def _local(self) -> bool:
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return self.host.lower() == "localhost"

    def admits(self, header: str) -> bool:
        """Whether an Authorization header has a key; all keys are compared, in constant time each."""
        scheme, _, given = header.partition(" ")
        key = given.strip().encode("utf-8", "replace") if scheme.lower() == "bearer" else b""
        found = [hmac.compare_digest(key, known) for known in self.keys]
        return not self.keys or any(found)


def read_keys(file: Path | None) -> tuple[bytes, ...]:
    """Keys of a file, one a line, and of the environment. Raises ConfigError for a file without any."""
    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "is not UTF-8"
            raise ConfigError(f"cannot be read: {said}", where=f"--api-key-file {file}") from None
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise ConfigError("holds no key", where=f"--api-key-file {file}", hint="write one key a line")
        keys += found
    return tuple(key.encode() for key in keys)
