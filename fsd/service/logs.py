"""Logging of all processes: for people, for journald (`<N>` prefixes, sd-daemon(3)) or as JSON lines, to stderr.

A message is a short event with fields: `_log.info("space opened", extra=fields(space=...))`. The request id is put
on each line while one is being served. The audit trail is the logger `fsd.audit`: one line for who did what.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

    The file is turned over at 32 MiB and eight old ones are kept; whoever else renames it is noticed. When it can't
    be written the work goes on: the lines are on stderr as well. Can be called again.
    """
    for old in [handler for handler in _audit.handlers if isinstance(handler, _AuditFile)]:
        _audit.removeHandler(old)
        old.close()
    path = state_dir / "audit.log"
    try:
        handler = _AuditFile(path)
    except OSError as error:
        logging.getLogger(__name__).warning(
            "no audit file", extra=fields(path=str(path), error=error.strerror)
        )
        return
    handler.setFormatter(_Json("audit"))
    _audit.addHandler(handler)
    _audit.setLevel(logging.INFO)


class _AuditFile(logging.Handler):
    """The audit file of one process; several append to it at once (O_APPEND, one write(2) a line)."""

    limit = 32 << 20
    kept = 8

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._fd = -1
        self._failing = self._torn = False
        self._open()

    def _open(self) -> None:
        self._shut()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        """Close the file; the handler is of no use afterwards."""
        self._shut()
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line. A failure is told once, until it works again; the caller never notices."""
        try:
            data = (self.format(record) + "\n").encode("utf-8", "replace")
            if not self._named():
                self._open()
            data = b"\n" + data if self._torn else data
            self._torn = os.write(self._fd, data) < len(data)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._failing = False
            if os.fstat(self._fd).st_size > self.limit:
                self._turn_over()
        except OSError as error:
            if not self._failing:
                self._failing = True
                more = fields(path=str(self.path), error=error.strerror)
                logging.getLogger(__name__).error("the audit file cannot be written", extra=more)

    def _named(self) -> bool:
        try:
            return self._fd >= 0 and os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def _turn_over(self) -> None:
        # The lock is on the file, not on the name: whoever was slower finds another file under the name.
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        if self._named():
            for turn in range(self.kept - 1, 0, -1):
                if os.path.exists(f"{self.path}.{turn}"):
                    os.replace(f"{self.path}.{turn}", f"{self.path}.{turn + 1}")
            os.replace(self.path, f"{self.path}.1")
        self._open()


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
