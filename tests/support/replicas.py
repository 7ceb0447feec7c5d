"""Several trees that are to become the same one, each edited at random, and proof that no content was lost on the way.

Each content is unique and begins with its token. Whoever overwrites or deletes a file notes the tokens that it has seen
there; every other token has to be somewhere in the end.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

_TOKEN = re.compile(rb"token [0-9]+;")
_NAMES = ("a", "b", "ü c", "d+%e", "f#&g", "h;i", "J", "j", "k.txt", "l'm")
_FOLDERS = ("D1", "D2", "D 3", "dä4")
_SIZES = (0, 10, 400, 5_000, 200_000)


class Ledger:
    """All contents that were ever written, and those that somebody has seen and replaced."""

    def __init__(self) -> None:
        self._numbers = count(1)
        self.written: dict[bytes, str] = {}
        """Where each was written first."""
        self.seen_off: set[bytes] = set()
        self.kept: set[bytes] = set()
        """What the server has set aside; it may thin that out later."""

    def content(self, size: int, where: Path) -> bytes:
        """A new content of about `size` bytes, for a place."""
        token = b"token %d;" % next(self._numbers)
        self.written[token] = str(where)
        return token + b"." * max(0, size - len(token))

    def destroyed(self, content: bytes) -> None:
        """Somebody has seen this and wants it no more."""
        self.seen_off.update(_TOKEN.findall(content))

    def note_kept(self, places: Iterator[Path]) -> None:
        """Versions and trash, as they are now."""
        for path in places:
            with suppress(FileNotFoundError):
                self.kept.update(_TOKEN.findall(path.read_bytes()))

    def lost(self, places: Iterator[Path]) -> dict[bytes, str]:
        """What nobody gave up and is in none of the files, with the place that it was written to."""
        known = self.seen_off | self.kept
        left = {token: where for token, where in self.written.items() if token not in known}
        for path in places:
            for token in _TOKEN.findall(path.read_bytes()):
                left.pop(token, None)
        return left


class Replica:
    """One tree and its random edits. `graves` is a directory beside it, on the same filesystem: what is replaced or
    deleted is first taken there in one step, so that what is noted is what was there, whoever else is at work."""

    def __init__(self, root: Path, graves: Path, ledger: Ledger, seed: int, when: Iterator[int]) -> None:
        self.root, self._graves, self._ledger = root, graves, ledger
        self._random = random.Random(seed)
        self._when = when
        """Modification times: none comes twice, as clients look at seconds and sizes to see what has changed."""
        self._numbers = count()
        graves.mkdir(parents=True, exist_ok=True)
        self.operations = 0

    def edit(self, times: int) -> None:
        """So many operations. One that meets something unexpected counts, too."""
        ways: list[Callable[[], None]] = [
            self._write, self._write, self._write, self._write, self._append, self._rename, self._rename, self._unlink,
            self._mkdir, self._rename_folder,
        ]  # fmt: skip
        for _ in range(times):
            try:
                self._random.choice(ways)()
            except OSError:
                pass  # somebody else was faster, or there is no such folder
            self.operations += 1

    def _folder(self) -> Path:
        path = self.root
        for _ in range(self._random.choice((0, 1, 1, 2))):
            path = path / self._random.choice(_FOLDERS)
        return path

    def _path(self) -> Path:
        return self._folder() / self._random.choice(_NAMES)

    def _bury(self, path: Path) -> None:
        """Take something away, and note what it held."""
        grave = self._graves / str(next(self._numbers))
        os.rename(path, grave)
        for each in _files(grave):
            self._ledger.destroyed(each.read_bytes())

    def _write(self) -> None:
        """A new file, or another one in the place of what is there, as most programs save."""
        path = self._path()
        made = self._graves / f"new{next(self._numbers)}"
        if not path.parent.is_dir() or path.is_dir():
            return
        made.write_bytes(self._ledger.content(self._random.choice(_SIZES), path))
        os.utime(made, (next(self._when),) * 2)
        if path.exists():
            self._bury(path)
        try:
            os.link(made, path)
        except OSError:
            self._ledger.destroyed(made.read_bytes())  # it never got there
        os.unlink(made)

    def _append(self) -> None:
        """In place."""
        path = self._path()
        with open(path, "r+b") as file:
            content = self._ledger.content(20, path)
            file.seek(0, os.SEEK_END)
            file.write(content)
            file.flush()
            os.utime(file.fileno(), (next(self._when),) * 2)
            if not os.path.samestat(os.fstat(file.fileno()), _stat_of(path)):
                # Somebody has put another file in its place: on any filesystem this one writes into the old one then.
                self._ledger.destroyed(content)

    def _rename(self) -> None:
        source, target = self._path(), self._path()
        if source.is_file() and not target.exists():
            os.rename(source, target)

    def _unlink(self) -> None:
        path = self._path()
        if path.is_file():
            self._bury(path)

    def _mkdir(self) -> None:
        (self._folder() / self._random.choice(_FOLDERS)).mkdir()

    def _rename_folder(self) -> None:
        source, target = self._folder(), self._folder()
        if source != self.root and not target.exists() and source not in target.parents:
            os.rename(source, target)

    def remove_folder(self) -> None:
        """Remove one of the folders. Not among the edits: clients delete with a folder what was not yet uploaded from
        it, so that is done when all trees are the same."""
        folders = [path for path in self.root.iterdir() if path.name in _FOLDERS]
        if folders:
            self._bury(self._random.choice(sorted(folders)))
            self.operations += 1


def _stat_of(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError:
        return os.stat("/")  # not that file, whatever it is


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for directory, _, names in os.walk(path):
        for name in names:
            yield Path(directory) / name


def every_file(*roots: Path) -> Iterator[Path]:
    """All files below some directories, what programs keep there included."""
    for root in roots:
        yield from _files(root)
