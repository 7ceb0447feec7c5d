"""Reply headers as lines; and headers that are sent again and again, whose lines are put together once."""

from __future__ import annotations

from collections.abc import Iterable

Header = tuple[str, str]


class KeptHeaders(list[Header]):
    """Headers that stand for something unchanging.  A ``copy`` may be appended to; nothing else may be changed."""

    __slots__ = ("counted", "length", "text")

    def __init__(self, headers: Iterable[Header]) -> None:
        super().__init__(headers)
        self.text, self.length, _ = header_lines(list(self))
        self.counted = len(self)

    def copy(self) -> KeptHeaders:
        made = KeptHeaders.__new__(KeptHeaders)
        made += self
        made.text, made.length, made.counted = self.text, self.length, self.counted
        return made


def header_lines(headers: list[Header]) -> tuple[str, int | None, bool]:
    """(the lines, the announced length, whether the application wants the connection closed).

    RuntimeError if a value would end its line.
    """
    if type(headers) is KeptHeaders:
        more, length, close = header_lines(headers[headers.counted :])
        return headers.text + more, headers.length if length is None else length, close
    length = None
    close = False
    lines = []
    for name, value in headers:
        if name == "Content-Length":
            length = int(value)
        elif name == "Connection":
            close = value.lower() == "close"
            continue
        lines.append(f"{name}: {value}\r\n")
    text = "".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        raise RuntimeError("a line ending in a reply header")
    return text, length, close
