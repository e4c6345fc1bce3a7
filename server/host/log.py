"""The host's log: structlog and the libraries' own records, on standard error, without the text of anybody's data."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from types import TracebackType

import structlog

_ROTATE_BYTES = 10 * 1024 * 1024

_ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]


def frames_only(exc_info: _ExcInfo) -> str:
    """Where an exception came from and its type; its message is left out, since it may quote a document."""
    kind, error, trace = exc_info
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    own = "".join(traceback.format_tb(trace)) + (kind.__name__ if kind else "")
    return "\n".join([own, *(frames_only((type(one), one, one.__traceback__)) for one in inner)])


class _Formatter(logging.Formatter):
    def formatException(self, ei: _ExcInfo) -> str:
        return frames_only(ei)


def configure_logging(level: int = logging.INFO) -> None:
    """Write structlog's events from `level` on as JSON lines, and libraries' warnings, to standard error."""

    def without_message(_logger: object, _name: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        if event.pop("exc_info", None):
            event["exception"] = frames_only(sys.exc_info())
        return event

    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_message,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)


def rotate(log: Path) -> None:
    """Point standard output and error at `log`, and move it aside first where it is over 10 MB; three are kept.

    Done on the descriptors, so that C libraries and child processes that start later follow.
    """
    if log.exists() and log.stat().st_size > _ROTATE_BYTES:
        older = log.with_suffix(".log.1")
        if older.exists():
            older.replace(log.with_suffix(".log.2"))
        log.replace(older)
    elif log.exists() and log.stat().st_ino == os.fstat(2).st_ino == os.fstat(1).st_ino:
        return
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)
