"""Uploads of a remote mount, step by step: what is queued, held, dropped and listed while requests are on their way."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from fsd.mount.remote.client import Answer
from fsd.mount.remote.contents import BLOCK, Contents
from fsd.mount.remote.errors import Refused
from fsd.mount.remote.ledger import Ledger
from fsd.mount.remote.multistatus import Found
from fsd.mount.remote.nodes import Node, Tree
from fsd.mount.remote.progress import Progress
from fsd.mount.remote.sync import Sync
from fsd.mount.remote.uploads import AT_ONCE, Uploader

FOLDER = "s!f"


class Answers:
    """What a server with one folder answers, in memory: the moment of each answer is the test's to choose."""

    def __init__(self) -> None:
        self.client = SimpleNamespace(away=None)
        self.files: dict[bytes, tuple[str, str, bytes]] = {}
        self.asked: list[str] = []
        self.before_put: Callable[[], Awaitable[None]] | None = None
        self.after_listing: Callable[[], Awaitable[None]] | None = None

    async def put(self, path: str, body: bytes, size: int, base: str | None, mtime_ns: int) -> Answer:
        name = path.rpartition("/")[2].encode()
        self.asked.append(f"PUT {name.decode()}")
        if self.before_put is not None:
            await self.before_put()
        await trio.lowlevel.checkpoint()
        known = self.files.get(name)
        if (known[1] if known else None) != base:
            raise Refused(412, "changed")
        etag = f"e{len(self.asked)}"
        self.files[name] = (known[0] if known else f"s!{len(self.asked)}", etag, body)
        return Answer(201, {"oc-fileid": self.files[name][0], "etag": f'"{etag}"'}, b"")

    async def one(self, path: str) -> Found | None:
        self.asked.append("PROPFIND 0")
        name = path.rpartition("/")[2].encode()
        if path.endswith(FOLDER):
            return Found(b"f", True, 0, 1, "1", FOLDER, "RDNVCK")
        known = self.files.get(name)
        return Found(name, False, len(known[2]), 1, known[1], known[0], "RDNVW") if known else None

    async def listing(self, path: str, depth: int = 1) -> list[Found]:
        self.asked.append("PROPFIND 1")
        found = [Found(b"f", True, 0, 1, "1", FOLDER, "RDNVCK")]
        found += [Found(n, False, len(d), 1, e, i, "RDNVW") for n, (i, e, d) in self.files.items()]
        if self.after_listing is not None:
            await self.after_listing()
        return found


class Side:
    """The mount's side of it, with one folder."""

    def __init__(self, where: Path) -> None:
        self.answers = Answers()
        dav: Any = self.answers
        ledger = Ledger(where)
        self.contents, self.tree = Contents(where, ledger, 100 * BLOCK), Tree()
        self.sync = Sync(self.tree, dav, ledger)
        self.sync.live = True
        self.uploader = self.sync.uploader = Uploader(
            self.sync, dav, self.contents, ledger, Progress(), delay=0.0, user="ann"
        )
        self.folder = self.tree.make(b"f", is_dir=True, ident=FOLDER)
        self.tree.root.children = {}
        self.tree.put(self.tree.root, b"f", self.folder)
        self.folder.children = {}

    def write(self, name: bytes, data: bytes, *, later: float = 0) -> Node:
        """A file that is uploaded at once, or so many seconds later."""
        self.uploader._delay = later
        node = self.tree.make(name, is_dir=False)
        change = self.uploader.create(self.folder, name, node)
        os.pwrite(change.content.fd, data, 0)
        node.size = len(data)
        self.tree.put(self.folder, name, node)
        self.contents.close(change.content)
        self.uploader.closed(node)
        return node


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.001)


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path)


def played(side: Side, play: Callable[[], Awaitable[None]]) -> None:
    """While the uploader runs."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(side.uploader.run)
            await play()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_is_queued_twice_is_sent_once(side: Side) -> None:
    """More than go at once: what is queued again may be sent by the time its turn comes."""
    names = [b"%d" % number for number in range(4 * AT_ONCE)]

    async def play() -> None:
        for name in names:
            side.write(name, name, later=60)
        side.uploader.retry_now()
        side.uploader.retry_all()
        await until(lambda: not side.uploader.waiting)
        side.write(b"last", b"1")
        await until(lambda: not side.uploader.waiting)

    played(side, play)
    assert sorted(side.answers.asked) == sorted(f"PUT {name.decode()}" for name in [*names, b"last"])
    assert side.uploader.conflicts == []


def test_no_upload_begins_while_somebody_holds_the_file(side: Side) -> None:
    async def play() -> None:
        node = side.write(b"a", b"1")
        async with side.uploader.still(node):
            side.write(b"b", b"2")
            await until(lambda: b"b" in side.answers.files)
            side.tree.put(side.folder, b"c", node)
            side.uploader.moved(node, side.folder, b"c")
        await until(lambda: not side.uploader.waiting)

    played(side, play)
    assert side.answers.asked == ["PUT b", "PUT c"]


def test_who_holds_a_file_waits_for_its_upload(side: Side) -> None:
    async def play() -> None:
        begun, go_on = trio.Event(), trio.Event()

        async def wait() -> None:
            begun.set()
            await go_on.wait()

        side.answers.before_put = wait
        node = side.write(b"a", b"1")
        await begun.wait()
        with trio.move_on_after(0.05) as scope:
            async with side.uploader.still(node):
                raise AssertionError("its upload was not awaited")
        assert scope.cancelled_caught and not node.held
        go_on.set()
        async with side.uploader.still(node):
            assert node.pending is None and node.id is not None

    played(side, play)


def test_what_was_dropped_while_held_is_never_sent(side: Side) -> None:
    async def play() -> None:
        node = side.write(b"a", b"1")
        async with side.uploader.still(node):
            side.write(b"b", b"2")
            await until(lambda: b"b" in side.answers.files)
            side.uploader.drop(node)
        side.write(b"c", b"3")
        await until(lambda: not side.uploader.waiting)

    played(side, play)
    assert sorted(side.answers.files) == [b"b", b"c"]


@pytest.mark.parametrize("told", ["event", "upload"])
def test_what_changes_while_a_folder_is_first_listed_is_listed_again(side: Side, told: str) -> None:
    """The listing is from before it, and its folder is not there yet to take note."""

    async def play() -> None:
        node = side.write(b"late", b"1")
        side.folder.children, node.parent = None, None
        side.answers.client.away = "not yet"

        async def meanwhile() -> None:
            side.answers.after_listing = None
            if told == "event":
                side.uploader.drop(node)
                side.answers.files[b"late"] = ("s!late", "e", b"1")
                side.sync.heard({"kind": "created", "id": "s!late", "parent": FOLDER, "name": "late"})
            else:
                side.uploader.retry_all()
                await until(lambda: not side.uploader.waiting)

        side.answers.client.away = None
        side.answers.after_listing = meanwhile
        await side.sync.load(side.folder)
        await side.sync.load(side.folder)

    played(side, play)
    assert list(side.folder.children or {}) == [b"late"]
