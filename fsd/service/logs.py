"""Logging of all processes: for people, for journald (`<N>` prefixes, sd-daemon(3)) or as JSON lines, to stderr.

A message is a short event with fields: `_log.info("space opened", extra=fields(space=...))`. The request id is put
on each line while one is being served. The audit trail is the logger `fsd.audit`: one line for who did what, and for
who read what. Who listed what is in a file of its own, because clients ask all the time: what is kept of changes and
reads would be pushed out by it.
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
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from json.encoder import encode_basestring_ascii as _quoted
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


def audit(
    actor: str, action: str, target: str, *, outcome: str = "ok", later: bool = False, **more: Any
) -> None:
    """One line for who did what: actor is a user, or `cli:<system user>`; `more` are fields such as space, address.

    It goes to the audit file, or without one to the log. `later`: it may wait for `flush_audit`, with others.
    """
    trail = _trail
    if trail is not None and trail.line(actor, action, target, outcome, later, more):
        return
    _audit.info(action, extra=fields(actor=actor, target=target, outcome=outcome, **more))


def access(actor: str, action: str, target: str, *, outcome: str = "ok", **more: Any) -> None:
    """One line for who looked at what there is. It may wait for `flush_audit`; without a file there is none."""
    if _listings is not None:
        _listings.line(actor, action, target, outcome, True, more)


_trail: _AuditFile | None = None
_listings: _AuditFile | None = None


def flush_audit() -> None:
    """Write the lines that were allowed to wait."""
    for file in (_trail, _listings):
        if file is not None:
            file.flush()


def audit_to_file(state_dir: Path, *, buffered: bool = False, listings: bool = False) -> None:
    """Append audit lines to `audit.log` in the state directory, as JSON, whole lines from all processes.

    With `listings` those of `access` go to `access.log`.

    A file is turned over at 32 MiB and eight old ones are kept; whoever else renames it is noticed. When it can't
    be written the work goes on, and the lines are on stderr. `buffered`: somebody calls `flush_audit` regularly, so
    lines that may wait do. Can be called again.
    """
    global _trail, _listings
    for old in [handler for handler in _audit.handlers if isinstance(handler, _AuditFile)]:
        _audit.removeHandler(old)
        old.close()
    if _listings is not None:
        _listings.close()
    _trail = _listings = None
    if listings:
        _listings = _opened(state_dir / "access.log", buffered)
    handler = _opened(state_dir / "audit.log", buffered)
    if handler is None:
        return
    handler.setFormatter(_Json("audit"))
    _audit.addHandler(handler)
    _audit.setLevel(logging.INFO)
    _trail = handler


def _opened(path: Path, buffered: bool) -> _AuditFile | None:
    try:
        return _AuditFile(path, buffered)
    except OSError as error:
        more = fields(path=str(path), error=error.strerror)
        logging.getLogger(__name__).warning("no audit file", extra=more)
        return None


_LOOK_S = 0.2
"""Seconds between two looks at the audit file's name and size. Whoever renames it gets lines for so long still."""


class _AuditFile(logging.Handler):
    """The audit file of one process; several append to it at once (O_APPEND, whole lines in one write(2))."""

    limit = 32 << 20
    kept = 8
    most = 64 << 10
    """Bytes that wait at most."""

    def __init__(self, path: Path, buffered: bool = False) -> None:
        super().__init__()
        self.path = path
        self._buffered = buffered
        self._fd = -1
        self._failing = self._torn = False
        self._waiting: list[str] = []
        self._size = 0
        self._looked = 0.0
        self._second = (0, "")
        self._encode = json.JSONEncoder(ensure_ascii=True, default=str).encode
        self._open()

    def _open(self) -> None:
        self._shut()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _shut(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def close(self) -> None:
        """Write what waits and close the file; the handler is of no use afterwards."""
        global _trail, _listings
        if _trail is self:
            _trail = None
        if _listings is self:
            _listings = None
        if self._fd >= 0:
            self.flush()
        self._shut()
        super().close()

    def line(
        self, actor: str, action: str, target: str, outcome: str, later: bool, more: dict[str, Any]
    ) -> bool:
        """Append a line as the formatter would write it; False if the file can't be written."""
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = (second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
        # Put together by hand: an encoder for the whole takes three times as long, for each GET.
        text = (
            f'{{"time": "{self._second[1]}.{int(now % 1 * 1000):03d}Z", "level": "info", "process": "audit", '
            f'"pid": {os.getpid()}, "logger": "fsd.audit", "event": {_quoted(action)}, "actor": {_quoted(actor)}, '
            f'"target": {_quoted(target)}, "outcome": {_quoted(outcome)}'
        )
        for key, value in more.items():
            text += (
                f", {_quoted(key)}: {_quoted(value) if type(value) is str else self._encode(_plain(value))}"
            )
        ident = request_id.get()
        text += f', "request": {_quoted(ident)}}}\n' if ident else "}\n"
        with self.lock or nullcontext():
            self._waiting.append(text)
            self._size += len(text)
            if later and self._buffered and self._size < self.most:
                return True
            return self._write()

    def flush(self) -> None:
        """Write what waits."""
        with self.lock or nullcontext():
            if self._waiting and not self._write():
                logging.getLogger(__name__).error("audit lines were lost")

    def emit(self, record: logging.LogRecord) -> None:
        """Append one line. A failure is told once, until it works again; the caller never notices."""
        self._waiting.append(self.format(record) + "\n")
        self._write()

    def _write(self) -> bool:
        lines, self._waiting, self._size = self._waiting, [], 0
        try:
            data = "".join(lines).encode("utf-8", "replace")
            now = time.monotonic()
            due = now - self._looked > _LOOK_S
            if due or self._fd < 0:
                self._looked = now
                if not self._named():
                    self._open()
            data = b"\n" + data if self._torn else data
            self._torn = os.write(self._fd, data) < len(data)
            if self._torn:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._failing = False
            if due and os.fstat(self._fd).st_size > self.limit:
                self._turn_over()
            return True
        except OSError as error:
            if not self._failing:
                self._failing = True
                more = fields(path=str(self.path), error=error.strerror)
                logging.getLogger(__name__).error("the audit file cannot be written", extra=more)
            return False

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
