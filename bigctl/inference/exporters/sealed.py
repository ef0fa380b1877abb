"""An export in one encrypted file: a tar of all its files, in chunks of AES-256-GCM under a key that scrypt makes of a
passphrase. Free of jax.

Numbers are big-endian. The head has 42 bytes: `MAGIC` (16), log2 N (1), r (1) and p (1) of scrypt, its salt (16), and
the first bytes of all nonces (7). Of 64 bytes from scrypt the first 32 are the key of AES, the others that of an
HMAC-SHA256 of the head, which follows it (32) and tells a wrong passphrase from a damaged file. Then come the chunks:
1 MiB of the tar each (the last as much as is left), sealed with the head as associated data, and a tag of 16 bytes. The
nonce of a chunk is those 7 bytes, its number (4), and 1 for the last, else 0: chunks that are swapped, left out or cut
off are found (the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizar 2015, as age and Tink have it).
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import importlib.util
import io
import logging
import os
import re
import secrets
import shutil
import signal
import tarfile
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from bigctl.errors import BigctlError, ConfigError, RunError
from bigctl.interop.folders import whole_or_nothing
from bigctl.runs import logs
from bigctl.runs.directory import SEALED
from bigctl.runs.sealed_form import CHUNK, HEAD, MAGIC, PROOF, TAG, P, R

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FILE = SEALED
VARIABLE = "BIGCTL_PASSPHRASE"
LOG_N = 17
"""Of scrypt: 128 MiB of memory for each passphrase that is tried, as OWASP recommends."""
MOST_LOG_N = 20
"""What is accepted of a file: it takes 1 GiB."""
LEAST = 8
_README = """\
# An encrypted export

`{file}` is a model that `bigctl export --encrypt` wrote. With the passphrase in a file:

```
bigctl serve FOLDER --passphrase-file FILE
bigctl export FOLDER --decrypt --out NEW --passphrase-file FILE
```

AES-256-GCM in chunks under a key that scrypt makes of the passphrase; docs/export.md has the format to the byte.
"""
log = logging.getLogger("bigctl")


def is_sealed(folder: Path) -> bool:
    return (folder / FILE).is_file()


def require_package() -> None:
    """Raises ConfigError without the package that encrypts."""
    if importlib.util.find_spec("cryptography") is None:
        raise ConfigError("an encrypted export needs cryptography", hint='pip install "bigctl[encrypt]"')


def passphrase(file: Path | None, *, new: bool = False) -> str:
    """The passphrase: the first line of a file, or of the environment.

    Args:
        file: None for the environment.
        new: whether something is to be encrypted with it, where it must not be all too short.

    Raises:
        ConfigError: where there is none, or the file cannot be read.
    """
    require_package()
    if file is not None:
        where = f"--passphrase-file {file}"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            said = getattr(error, "strerror", None) or "is not UTF-8"
            raise ConfigError(f"cannot be read: {said}", where=where) from None
        found = lines[0] if lines else ""
        with contextlib.suppress(OSError):
            if file.stat().st_mode & 0o077 and file.is_file():
                logs.show_warnings()
                log.warning("%s can be read by others: chmod 600 %s", file, file)
    else:
        where, found = VARIABLE, os.environ.get(VARIABLE, "")
    if not found:
        hint = f"set {VARIABLE}, or give --passphrase-file FILE; it is no argument, for those can be seen by others"
        raise ConfigError("there is no passphrase", where=where, hint=hint)
    if new and len(found) < LEAST:
        hint = f"{LEAST} or more; five words drawn by dice are better"
        raise ConfigError(f"a passphrase of {len(found)} characters is guessed", where=where, hint=hint)
    return unicodedata.normalize("NFC", found)


# ------------------------------------------------------------------------------------------------------------ the file


def seal(clear: Path, folder: Path, secret: str) -> None:
    """Write the files of a folder as a new one that holds them encrypted.

    Raises:
        RunError: if it cannot be written; nothing is left then.
    """
    head = MAGIC + bytes((LOG_N, R, P)) + secrets.token_bytes(16) + secrets.token_bytes(7)
    cipher, proof = _keys(head, secret)
    with whole_or_nothing(folder) as partial:
        with open(partial / FILE, "wb") as stream:
            stream.write(head + proof)
            chunks = io.BufferedWriter(_Sealing(stream, cipher, head), CHUNK)
            with tarfile.open(fileobj=chunks, mode="w|", format=tarfile.PAX_FORMAT) as archive:
                for file in sorted(clear.iterdir()):
                    archive.add(file, file.name, recursive=False, filter=_nameless)
            chunks.close()
            stream.flush()
            os.fsync(stream.fileno())
        (partial / "README.md").write_text(_README.format(file=FILE), encoding="utf-8")


def unseal(folder: Path, secret: str, clear: Path) -> None:
    """Write the files of an encrypted export into a folder that is there.

    Raises:
        RunError: for another passphrase, and for a file that is no such, damaged, or cut short.
    """
    file = folder / FILE
    try:
        with file.open("rb") as stream:
            head, proof = stream.read(HEAD), stream.read(PROOF)
            log_n, r, p = head[len(MAGIC) : len(MAGIC) + 3] if len(head) == HEAD else (0, 0, 0)
            if not head.startswith(MAGIC) or len(proof) < PROOF or not 10 <= log_n <= MOST_LOG_N or (r, p) != (R, P):
                raise RunError("is no encrypted export of bigctl, or its beginning is damaged", where=str(file))
            cipher, expected = _keys(head, secret)
            if not hmac.compare_digest(proof, expected):
                hint = "the one that it was encrypted with opens it; nothing else does"
                raise RunError("the passphrase is wrong", where=str(file), hint=hint)
            # Large blocks; and read to its end, so that what was cut off behind the tar's own end is seen.
            chunks = io.BufferedReader(_Opening(stream, cipher, head, str(file)), CHUNK)
            with tarfile.open(fileobj=chunks, mode="r|") as archive:
                for member in archive:
                    _write(archive, member, clear, file)
            while chunks.read(CHUNK):
                pass
    except tarfile.TarError as error:
        raise _damaged(str(file)) from error
    except OSError as error:
        raise RunError(f"cannot be read: {error.strerror or error}", where=str(file)) from error


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, clear: Path, file: Path) -> None:
    content = archive.extractfile(member)
    if content is None or Path(member.name).name != member.name or member.name in ("", ".", ".."):
        raise RunError(f"holds {member.name!r}, which no export has", where=str(file))
    with open(clear / member.name, "xb") as target:
        shutil.copyfileobj(content, target, CHUNK)


def _nameless(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without whose file it was."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o644
    return member


def _keys(head: bytes, secret: str) -> tuple[AESGCM, bytes]:
    """What encrypts under the scrypt numbers of a head, and the HMAC of the head."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    (log_n, r, p), salt = head[len(MAGIC) : len(MAGIC) + 3], head[len(MAGIC) + 3 : -7]
    memory = 2 * 128 * r * 2**log_n
    both = hashlib.scrypt(secret.encode(), salt=salt, n=2**log_n, r=r, p=p, maxmem=memory, dklen=64)
    return AESGCM(both[:32]), hmac.digest(both[32:], head, "sha256")


def _damaged(where: str) -> RunError:
    return RunError("is damaged or cut short", where=where, hint="copy it again")


class _Sealing(io.RawIOBase):
    """A stream to write to, whose content goes encrypted into another."""

    def __init__(self, stream: io.BufferedWriter, cipher: AESGCM, head: bytes):
        self._stream, self._cipher, self._head = stream, cipher, head
        self._waiting, self._number = bytearray(), 0

    def writable(self) -> bool:
        return True

    def write(self, given: object) -> int:
        before = len(self._waiting)
        self._waiting += given  # type: ignore[arg-type]
        added = len(self._waiting) - before
        while len(self._waiting) > CHUNK:  # what may be the last one is kept
            self._chunk(last=False)
        return added

    def close(self) -> None:
        if not self.closed:
            self._chunk(last=True)
        super().close()

    def _chunk(self, *, last: bool) -> None:
        nonce = _nonce(self._head, self._number, last)
        self._stream.write(self._cipher.encrypt(nonce, bytes(self._waiting[:CHUNK]), self._head))
        del self._waiting[:CHUNK]
        self._number += 1


class _Opening(io.RawIOBase):
    """A stream to read, whose content lies encrypted in another."""

    def __init__(self, stream: io.BufferedReader, cipher: AESGCM, head: bytes, where: str):
        self._stream, self._cipher, self._head, self._where = stream, cipher, head, where
        self._ahead: bytes | None = stream.read(CHUNK + TAG)
        self._clear, self._number = b"", 0

    def readable(self) -> bool:
        return True

    def readinto(self, target: object) -> int:
        if not self._clear and self._ahead is not None:
            self._next(self._ahead)
        view = memoryview(target)  # type: ignore[arg-type]
        count = min(len(view), len(self._clear))
        view[:count] = self._clear[:count]
        self._clear = self._clear[count:]
        return count

    def _next(self, chunk: bytes) -> None:
        from cryptography.exceptions import InvalidTag

        after = self._stream.read(CHUNK + TAG)
        try:
            nonce = _nonce(self._head, self._number, not after)
            self._clear = self._cipher.decrypt(nonce, chunk, self._head)
        except (InvalidTag, ValueError):
            raise _damaged(self._where) from None
        self._ahead, self._number = after or None, self._number + 1


def _nonce(head: bytes, number: int, last: bool) -> bytes:
    return head[-7:] + number.to_bytes(4, "big") + bytes((last,))


# ------------------------------------------------------------------------------------ where it is clear, and how long


@contextlib.contextmanager
def opened(folder: Path, secret: str | None) -> Iterator[Path]:
    """The folder of an export, its files in clear as long as this lasts: itself where nothing is encrypted.

    Raises:
        ConfigError: for an encrypted one without a passphrase.
        RunError: as `unseal` does. Errors that are raised within name the encrypted folder.
    """
    if not is_sealed(folder):
        yield folder
        return
    require_package()
    if secret is None:
        secret = passphrase(None)
    with clear_folder((folder / FILE).stat().st_size) as clear:
        try:
            unseal(folder, secret, clear)
            yield clear
        except BigctlError as error:
            error.where = error.where and error.where.replace(str(clear), str(folder))
            raise


@contextlib.contextmanager
def clear_folder(size: int) -> Iterator[Path]:
    """A folder of this user alone for what must not stay in clear, in memory (/dev/shm) where that has room; gone at
    the end, at an error, at SIGTERM and SIGHUP. What a process that was killed has left is removed by the next.

    Args:
        size: bytes that will be written, about.
    """
    in_memory = Path("/dev/shm")
    parent = in_memory if os.access(in_memory, os.W_OK) and shutil.disk_usage(in_memory).free > 1.1 * size else None
    if parent is None:
        parent = Path(_OUTSIDE[0] if _OUTSIDE else tempfile.gettempdir())
        log.warning("in clear on disk until this is done: %s, as there is no room in memory (/dev/shm)", parent)
    for left in parent.glob(f"bigctl-clear-{os.getuid()}-*"):
        if not _alive(left.name):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"bigctl-clear-{os.getuid()}-{os.getpid()}-{secrets.token_hex(4)}"
    with _ending_on_signals():
        try:
            folder.mkdir(mode=0o700)
            with _temporary_files_in(folder):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


_OUTSIDE: list[str] = []
"""Where temporary files lay before each of the folders that are open now."""


@contextlib.contextmanager
def _temporary_files_in(folder: Path) -> Iterator[None]:
    """What is written meanwhile to be measured or converted is in clear too."""
    _OUTSIDE.append(tempfile.gettempdir())
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        _OUTSIDE.pop()


def _alive(name: str) -> bool:
    found = re.fullmatch(r"bigctl-clear-\d+-(\d+)-[0-9a-f]+", name)
    if found is None:
        return True
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    taken = []
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, end)
                taken.append(number)
    except ValueError:  # not the main thread, which alone may
        pass
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
