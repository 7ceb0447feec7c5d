"""Logging of all processes: for people, for journald (`<N>` prefixes, sd-daemon(3)) or as JSON lines, to stderr.

A message is a short event with fields: `_log.info("space opened", extra=fields(space=...))`. The request id is put
on each line while one is being served. The audit trail is the logger `fsd.audit`: one line for who did what.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

request_id: ContextVar[str] = ContextVar("request_id", default="")
_audit = logging.getLogger("fsd.audit")
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}


def fields(**values: Any) -> dict[str, Any]:
    """`extra` for a log call: named values that every format keeps apart from the message."""
    return {"fields": values}


def setup(process: str, format: str = "text", level: str = "info") -> None:
    """Configure this process's logging; `process` stands in each line. Can be called again (after a fork)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter({"json": _Json, "journal": _Journal}.get(format, _Text)(process))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _audit.setLevel(logging.INFO)  # who did what is never filtered by the level


@contextmanager
def request(ident: str) -> Iterator[None]:
    """Put a request id on everything that is logged inside."""
    token = request_id.set(ident)
    try:
        yield
    finally:
        request_id.reset(token)


def audit(actor: str, action: str, target: str, *, outcome: str = "ok", **more: Any) -> None:
    """One line for who did what: actor is a user, or `cli:<system user>`; `more` are fields such as space, address."""
    _audit.info(action, extra=fields(actor=actor, target=target, outcome=outcome, **more))


def audit_to_file(state_dir: Path) -> None:
    """Also append audit lines to `audit.log` in the state directory, as JSON, whole lines from all processes.

    Rotation by rename is noticed (logrotate without copytruncate). Can be called again.
    """
    for old in [handler for handler in _audit.handlers if isinstance(handler, WatchedFileHandler)]:
        _audit.removeHandler(old)
        old.close()
    path = state_dir / "audit.log"
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
        handler = WatchedFileHandler(path, encoding="utf-8", delay=True)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "no audit file", extra=fields(path=str(path), error=error.strerror)
        )
        return
    handler.setFormatter(_Json("audit"))
    _audit.addHandler(handler)
    _audit.setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def fields_of(self, record: logging.LogRecord) -> dict[str, Any]:
        found = dict(getattr(record, "fields", {}))
        if ident := request_id.get():
            found["request"] = ident
        return found

    def line(self, record: logging.LogRecord) -> str:
        parts = [_one_line(record.getMessage())]
        parts += [
            f"{key}={_value(value)}" for key, value in self.fields_of(record).items() if value is not None
        ]
        return " ".join(parts)

    def trace(self, record: logging.LogRecord) -> str:
        if record.exc_info:
            return self.formatException(record.exc_info)
        return record.stack_info or ""


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        head = f"{moment}.{int(record.msecs):03d} {record.levelname.lower():7} {self.process}[{os.getpid()}]"
        text = f"{head} {record.name}: {self.line(record)}"
        trace = self.trace(record)
        return f"{text}\n{trace}" if trace else text


class _Journal(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{_PRIORITY.get(record.levelno, 6)}>"
        lines = [f"{self.process} {record.name}: {self.line(record)}", *self.trace(record).splitlines()]
        return "\n".join(mark + line for line in lines)


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        body: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self.process,
            "pid": os.getpid(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        body |= {key: _plain(value) for key, value in self.fields_of(record).items() if key not in body}
        if trace := self.trace(record):
            body["trace"] = trace
        return json.dumps(body, ensure_ascii=True, default=str)


def _plain(value: Any) -> Any:
    return os.fsdecode(value).encode("utf-8", "replace").decode() if isinstance(value, bytes) else value


def _value(value: Any) -> str:
    text = os.fsdecode(value) if isinstance(value, bytes) else str(value)
    if text and all(c.isprintable() and c not in ' "=\\' for c in text):
        return text
    return json.dumps(text)


def _one_line(text: str) -> str:
    # A name with a newline must not be able to forge a line of the log.
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)
