"""Kinds of settings: how text becomes a value, what is refused, and how a value is shown."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_SIZES = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_LARGEST = 1 << 62
"""Bytes: what databases and statfs(2) can still count with."""
_LONGEST = 36_500 * 86_400
_SPANS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. `str()` gives it back with brackets around IPv6."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in ("localhost", "::1") or re.fullmatch(r"127(\.\d+){1,3}", self.host) is not None


_MOUNT_WORDS = {"ro": "--read-only", "rw": "", "allow_other": "--allow-other"}
_MOUNT_VALUES = ("as", "passthrough")


@dataclass(frozen=True, slots=True)
class MountLine:
    """A mount that is kept up: what the words of a line in /etc/fstab say (fstab(5)). `str()` gives the line back.

    `space` is "all" for all of them; `options` are those of `scripts/mount.fsd`."""

    space: str
    place: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return shlex.join((self.space, self.place, *([",".join(self.options)] if self.options else [])))

    def arguments(self) -> list[str]:
        """The same as arguments of `fsd mount`."""
        made: list[str] = []
        for option in self.options:
            name, equals, value = option.partition("=")
            made += [f"--{name}", value] if equals else [_MOUNT_WORDS[name]] if _MOUNT_WORDS[name] else []
        return [*made, "--all" if self.space == "all" else self.space, self.place]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of setting: `parse` takes text or a TOML value of one of `natives`; ValueError says what it should be."""

    name: str
    parse: Callable[[Any], Any]
    show: Callable[[Any], str]
    natives: tuple[type, ...] = (str,)


def _text(value: str) -> str:
    if "\0" in value or "\n" in value:
        raise ValueError("must be one line")
    return value


def _boolean(value: str | bool) -> bool:
    if isinstance(value, bool):
        return value
    if value.lower() in ("1", "true", "yes", "on"):
        return True
    if value.lower() in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("is true or false")


def integer(low: int, high: int) -> Kind:
    """Whole numbers from `low` to `high`."""

    def parse(value: str | int) -> int:
        try:
            number = int(value)
        except ValueError:
            raise ValueError("is a whole number") from None
        if isinstance(value, bool) or not low <= number <= high:
            raise ValueError(f"is a number from {low} to {high}")
        return number

    return Kind("number", parse, str, (int, str))


def choice(*words: str) -> Kind:
    """One of some words."""

    def parse(value: str) -> str:
        if value not in words:
            raise ValueError(f"is one of {', '.join(words)}")
        return value

    return Kind("word", parse, str)


def words(*allowed: str) -> Kind:
    """A list of words, in text separated by commas; with `allowed`, only of these."""

    def parse(value: str | list[Any]) -> tuple[str, ...]:
        items = value.split(",") if isinstance(value, str) else value
        found = tuple(str(item).strip() for item in items if str(item).strip())
        for item in found:
            if allowed and item not in allowed:
                raise ValueError(f"is a list of {', '.join(allowed)}")
        return found

    return Kind("list", parse, ",".join, (str, list))


def _mounts(value: str | list[Any]) -> tuple[MountLine, ...]:
    lines = value.split(";") if isinstance(value, str) else value
    made = tuple(_mount(str(line)) for line in lines if str(line).strip())
    if len({each.place for each in made}) < len(made):
        raise ValueError("has two mounts at one place")
    return made


def _mount(line: str) -> MountLine:
    try:
        words = shlex.split(line)
    except ValueError:
        raise ValueError("has a quotation mark without its other one") from None
    if not 2 <= len(words) <= 3 or not words[1].startswith("/"):
        raise ValueError("is a list of 'SPACE /MOUNTPOINT [OPTION,…]'")
    options = tuple(each for each in (words[2].split(",") if len(words) > 2 else ()) if each)
    for option in options:
        name, equals, given = option.partition("=")
        if not (name in _MOUNT_VALUES and given if equals else name in _MOUNT_WORDS):
            raise ValueError("takes the options ro, rw, allow_other, as=USER and passthrough=auto|on|off")
    return MountLine(words[0], os.path.normpath(words[1]), options)


def parse_size(value: str | int) -> int:
    """Bytes from `4096`, `10M`, `1.5 GiB` (powers of 1024). ValueError otherwise."""
    form = r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([BKMGTP]?)(?:i?B)?\s*"
    found = re.fullmatch(form, str(value), re.IGNORECASE)
    if found is None or isinstance(value, bool):
        raise ValueError("is a size such as 4096, 10M or 1.5G")
    unit = _SIZES[found[2].upper()]
    size = int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit
    if size > _LARGEST:
        raise ValueError("is a size of at most 4096P")
    return size


def show_size(value: int | None) -> str:
    """The shortest exact form, such as `10M`."""
    if value is None:
        return "none"
    for unit in ("P", "T", "G", "M", "K"):
        if value and value % _SIZES[unit] == 0:
            return f"{value // _SIZES[unit]}{unit}"
    return str(value)


def _span(value: str | int) -> int:
    found = re.fullmatch(r"\s*([0-9]{1,12})\s*([smhdw]?)\s*", str(value))
    if found is None or isinstance(value, bool):
        raise ValueError("is a time such as 90, 15m, 12h or 30d")
    seconds = int(found[1]) * _SPANS[found[2]]
    if seconds > _LONGEST:
        raise ValueError("is a time of at most 36500d")
    return seconds


def _show_span(value: int) -> str:
    for unit in ("d", "h", "m"):
        if value and value % _SPANS[unit] == 0:
            return f"{value // _SPANS[unit]}{unit}"
    return f"{value}s"


def parse_address(value: str) -> Address:
    """`host:port`, with brackets around an IPv6 host. ValueError otherwise."""
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError("needs brackets around an IPv6 address: [::1]:9200")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("is an address such as 127.0.0.1:9200")
    return Address(host, int(port))


def _optional_address(value: str) -> Address | None:
    return None if value == "off" else parse_address(value)


def _path(value: str) -> Path:
    if not value or "\0" in value:
        raise ValueError("is a path")
    return Path(value).expanduser()


def _optional_size(value: str | int) -> int | None:
    return None if value == "none" else parse_size(value)


def _nothing(show: Callable[[Any], str], word: str) -> Callable[[Any], str]:
    return lambda value: word if value is None else show(value)


TEXT = Kind("text", _text, str)
BOOLEAN = Kind("yes or no", _boolean, lambda value: "true" if value else "false", (bool, str))
SIZE = Kind("size", parse_size, show_size, (int, str))
OPTIONAL_SIZE = Kind("size or none", _optional_size, show_size, (int, str))
SPAN = Kind("time", _span, _show_span, (int, str))
MOUNTS = Kind("list of mounts", _mounts, lambda value: "; ".join(map(str, value)), (str, list))
ADDRESS = Kind("address", parse_address, str)
OPTIONAL_ADDRESS = Kind("address or off", _optional_address, _nothing(str, "off"))
PATH = Kind("path", _path, str)
OPTIONAL_PATH = Kind("path", lambda value: _path(value) if value else None, _nothing(str, ""))
SECRET = Kind("secret", _text, lambda value: "********" if value else "")
