"""Log of a running process: levels, JSON lines to a rotating file, sentences to the console.

A loop with deadlines calls `Logger.debug` and its siblings without waiting: a line is queued in microseconds, and a
thread formats and writes it. When the queue is full, the line is dropped and counted. Nothing here raises, because a
full disk must not stop an arm.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import time
from pathlib import Path
from typing import Any

NAME = "harmowam"
WAITING = 4096  # lines in the queue between the loops and the disk
FILE_BYTES, FILES = 5_000_000, 3  # size of the rotating file


class _Lines(logging.Formatter):
    """One JSON object per line: wall-clock time (ISO 8601, UTC), monotonic ns, level, process, event, and the event's
    numbers."""

    def format(self, record: logging.LogRecord) -> str:
        row = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "t_ns": getattr(record, "t_ns", 0),
            "level": record.levelname.lower(),
            "process": record.process,
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        return json.dumps(row, default=str)


class _Sentences(logging.Formatter):
    """Console format: the event and its numbers on one line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = " ".join(f"{k}={v}" for k, v in getattr(record, "fields", {}).items())
        return f"{record.levelname.lower()}: {record.getMessage()}{f' ({fields})' if fields else ''}"


class _Queue(logging.handlers.QueueHandler):
    """A queue that never waits: a line that finds it full is dropped and counted."""

    def __init__(self, waiting: queue.Queue[Any]):
        super().__init__(waiting)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # the writing thread formats it

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            self.dropped += 1


class _Writer(logging.handlers.QueueListener):
    """A listener whose thread ends only after it has written everything that is queued."""

    def enqueue_sentinel(self) -> None:
        assert isinstance(self.queue, queue.Queue)
        self.queue.put(None)


class Logger:
    """The log of one process. Use it as a context: leaving it writes what is still queued.

    `file`: JSON lines from `level` on, rotated at 5 MB; `console`: warnings and errors as sentences on standard error.
    """

    def __init__(self, file: Path | None = None, level: int = logging.INFO, console: bool = True):
        self._logger = logging.Logger(NAME, level)
        self._queue = _Queue(queue.Queue(WAITING))
        self._logger.addHandler(self._queue)
        handlers: list[logging.Handler] = []
        if file is not None:
            rotating = logging.handlers.RotatingFileHandler(file, maxBytes=FILE_BYTES, backupCount=FILES, delay=True)
            rotating.setFormatter(_Lines())
            handlers.append(rotating)
        if console:
            shown = logging.StreamHandler(sys.stderr)
            shown.setFormatter(_Sentences())
            shown.setLevel(logging.WARNING)
            handlers.append(shown)
        for handler in handlers:
            # A full disk must not print a traceback.
            handler.handleError = lambda record: None  # type: ignore[method-assign]
        self._writer = _Writer(self._queue.queue, *handlers, respect_handler_level=True)
        self._writer.start()

    @property
    def dropped(self) -> int:
        """Number of lines that were dropped because the queue was full."""
        return self._queue.dropped

    def _log(self, level: int, event: str, fields: dict[str, Any]) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields, "t_ns": time.monotonic_ns()})

    def debug(self, event: str, **fields: Any) -> None:
        self._log(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._log(logging.ERROR, event, fields)

    def __enter__(self) -> Logger:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.stop()
        for handler in self._writer.handlers:
            handler.close()
