"""TensorBoard's event file, written at once.

`torch.utils.tensorboard.SummaryWriter` writes in a thread of its own, which ends with a stack trace on a full disk.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from detkit.files import writing


class EventFile:
    """Scalars by name and step, in a new file of the folder. Raises UserError if it cannot be written."""

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        """purge_step: TensorBoard forgets what earlier files of the folder say of this step and later ones"""
        self.path = folder / f"events.out.tfevents.{time.time_ns() // 10**9:010d}.{socket.gethostname()}.{os.getpid()}"
        with writing(self.path):
            self.file = self.path.open("ab")
        self.writer = RecordWriter(self.file)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add(self, step: int, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._write(Event(step=step, summary=summary))

    def close(self) -> None:
        self.file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with writing(self.path):
            self.writer.write(event.SerializeToString())
            self.file.flush()
