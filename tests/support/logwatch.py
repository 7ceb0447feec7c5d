"""A test fails when something logged a WARNING that it did not expect."""

from __future__ import annotations

import logging
import re


class LogWatch(logging.Handler):
    """Collects records of WARNING and above; a test names those it expects with `allow(REGEX)`."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []
        self._allowed: list[re.Pattern[str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def allow(self, pattern: str) -> None:
        """Messages (or logger names, as `name: message`) matching `pattern` are expected in this test."""
        self._allowed.append(re.compile(pattern))

    def unexpected(self) -> list[str]:
        """What was logged at WARNING or above and not allowed."""
        lines = [f"{record.levelname} {record.name}: {record.getMessage()}" for record in self.records]
        return [line for line in lines if not any(pattern.search(line) for pattern in self._allowed)]
