"""TensorBoard's event files: what is written is what TensorBoard reads, and training does not end for want of them."""

from __future__ import annotations

import errno
import logging
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bigctl.training.tracking.writers import TensorBoard


def events(folder: Path) -> Iterator[Any]:
    """Of all files there: each record is its length, a checksum of that, the event, a checksum of that."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    for file in sorted(folder.glob("events.out.tfevents.*")):
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = content[12 : 12 + length]
            (told,) = struct.unpack("<I", content[12 + length : 16 + length])
            check = crc32c(event)
            assert told == (((check >> 15) | (check << 17)) + 0xA282EAD8) & 0xFFFFFFFF
            yield Event.FromString(event)
            content = content[16 + length :]


def test_an_event_has_the_numbers_of_its_step_and_is_there_at_once(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path / "tensorboard", step=0)
    writer.write(5, {"train/loss": 0.5, "train/other": math.inf, "epoch": 1.0, "val/name": "x"})
    version, event = events(tmp_path / "tensorboard")  # flushed before it is closed
    assert version.file_version == "brain.Event:2" and event.step == 5 and event.wall_time > 1.7e9
    assert [(value.tag, value.simple_value) for value in event.summary.value] == [("train/loss", 0.5)]
    writer.write(6, {"train/loss": 0.25})
    writer.close()
    assert [event.step for event in events(tmp_path / "tensorboard")] == [0, 5, 6]


def test_what_a_resumed_run_had_written_after_its_step_is_marked_to_be_dropped(tmp_path: Path) -> None:
    writer = TensorBoard(tmp_path, step=7)
    writer.write(8, {"train/loss": 1.0})
    writer.cut(3)
    writer.close()
    found = list(events(tmp_path))
    starts = [(event.step, event.session_log.status) for event in found if event.HasField("session_log")]
    assert starts == [(8, 1), (4, 1)] and [event.step for event in found] == [0, 8, 8, 4]


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TensorBoard(tmp_path, step=0)

    def full(event: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer._writer, "write_event", full)
    with caplog.at_level(logging.WARNING, logger="bigctl.train"):
        for step in range(3):
            writer.write(step, {"train/loss": 1.0})
        writer.close()
    (said,) = caplog.messages
    assert "No space left on device; no more events are written" in said
