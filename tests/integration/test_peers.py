"""What is known to go wrong in servers of this kind, done to this one. docs/peers.md says which report is meant."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import killpoints
from tests.support.davclient import Dav
from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree, wait_for


class Place:
    """One space of the shared server."""

    def __init__(self, server: Server, name: str) -> None:
        server.fsd("space", "create", name)
        self.server, self.name = server, name
        self.record = server.space(name)
        self.root = Path(self.record["path"])
        self.dav: Dav = server.space_dav(self.record)

    def right(self) -> None:
        """Listings, sizes and times equal the disk."""
        settled(os.fsencode(self.root), self.dav, wait=agree, timeout=60)


@pytest.fixture(scope="module")
def places(shared_server: Server) -> Iterator[Callable[[str], Place]]:
    yield lambda name: Place(shared_server, name)


@pytest.mark.parametrize("parent", ["Übung", "U\u0308bung", "日本/語", "päivä (1)/ä"])
def test_files_below_a_parent_with_another_alphabet(places: Callable[[str], Place], parent: str) -> None:
    """Shown at once, without a restart, with their sizes up to the root."""
    place = places(f"names-{abs(hash(parent))}")
    (place.root / parent).mkdir(parents=True)
    for number in range(3):
        (place.root / parent / f"ß{number}").write_text("x" * 10)
        assert place.dav.stat(os.fsencode(f"{parent}/ß{number}")).size == 10
    place.right()
    assert place.dav.stat(b"").size == 30


def test_a_moved_directory_costs_the_same_whatever_is_in_it(tmp_path: Path) -> None:
    """Not one step for each thing below: the calls that change anything are counted."""
    if not killpoints.available():
        pytest.skip("needs ptrace of a child")
    from fsd.core.reconcile import reconcile
    from tests.support.worlds import make_space, sweep

    def calls(files: int) -> int:
        space = make_space(tmp_path / str(files))
        root = Path(os.fsdecode(space.root))
        for number in range(files):
            (root / f"d/{number % 7}").mkdir(parents=True, exist_ok=True)
            (root / f"d/{number % 7}/{number}").write_text("x")
        sweep(space)
        (root / "d").rename(root / "e")
        space.close()

        def ready() -> object:
            sweep_free = space.index.read
            with sweep_free():
                return space

        made = killpoints.calls_made(ready, lambda opened: reconcile(opened, b"", [b"d", b"e"]))
        space.close()
        return len(made)

    assert calls(700) <= calls(7) + 4


def test_the_server_comes_to_rest(places: Callable[[str], Place]) -> None:
    """Beside things that can't be read, an endless writer that has ended, and labels of its own: no file is read again
    and again."""
    place = places("rest")
    for number in range(50):
        (place.root / f"d{number % 5}").mkdir(exist_ok=True)
        (place.root / f"d{number % 5}/f{number}").write_text("x" * 1000)
    (place.root / "d0/closed").write_text("x")
    (place.root / "d0/closed").chmod(0)
    os.symlink("loop", place.root / "loop")
    os.mkfifo(place.root / "fifo")
    place.right()
    (watcher,) = place.server.child("watcher")
    seen: list[int] = []

    def read() -> int:
        """Bytes that the watcher has read with read(2) and the like since it began (proc(5))."""
        return int(Path(f"/proc/{watcher}/io").read_text().split()[1])

    def at_rest() -> bool:
        seen.append(read())
        return len(seen) > 3 and seen[-1] - seen[-3] < 200_000

    wait_for(at_rest, timeout=60, every=1.0, what="a watcher that does not read again and again")


def test_a_client_of_a_killed_server_finds_everything(make_server: Callable[..., Server]) -> None:
    """No name is ever 404 that is on disk: not while the index is gone, not while it is built."""
    server = make_server()
    server.allow_log(r"restart|exit|died|killed|signal|rebuil|recreat|index")
    place = Place(server, "cache")
    for number in range(300):
        (place.root / f"d{number % 10}").mkdir(exist_ok=True)
        (place.root / f"d{number % 10}/f{number}").write_text("x")
    place.right()
    known = {resource.path: resource.id for resource in place.dav.propfind(b"d3")}
    server.kill()
    for path in server.state.glob("*.index.db*"):
        path.unlink()
    server.start()
    for path, node_id in known.items():
        answer = place.dav.request("PROPFIND", path, None, {"Depth": "0"})
        assert answer.status in (207, 503), (path, answer.status)
        wait_for(lambda path=path: place.dav.request("PROPFIND", path, None, {"Depth": "0"}).status == 207)
        assert place.dav.stat(path).id == node_id
    place.right()


def test_labels_lost_with_a_clone_of_the_tree(make_server: Callable[..., Server], tmp_path: Path) -> None:
    """A clone without attributes, put in the tree's place: files keep their ids by their places."""
    server = make_server()
    server.allow_log("restored|storage|unavailable|not available|registered|watched")
    place = Place(server, "clone")
    (place.root / "f").write_text("kept")
    place.right()
    before = place.dav.stat(b"f").id
    server.stop()
    copy = place.root.with_name("copy")
    subprocess.run(
        ["cp", "-r", "--preserve=mode,ownership,timestamps", str(place.root), str(copy)], check=True
    )
    assert "user.fsd.id" not in os.listxattr(copy / "f")
    shutil.rmtree(place.root)
    copy.rename(place.root)
    server.start()
    place.right()
    assert place.dav.stat(b"f").id == before
