"""A space that people and instruments of a group write into directly, served by a user of its own: everybody is a real
user of the machine, nobody is root."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.oracle import settled
from tests.support.serving import Server
from tests.support.waiting import agree
from tests.support.writers import Writer

pytestmark = pytest.mark.root
SERVICE, INSTRUMENT, COLLEAGUE, STRANGER, LAB = 4001, 4002, 4003, 4004, 4100


def own(path: Path, uid: int) -> None:
    for each in (path, *path.rglob("*")):
        os.chown(each, uid, uid)


@pytest.fixture
def served(open_place: Path) -> Iterator[Server]:
    """A server that runs as SERVICE, in the group LAB."""
    server = Server(open_place / "site")
    server.state.mkdir()
    own(open_place / "site", SERVICE)
    server.become(SERVICE, LAB)
    server.log_path.touch()
    server.start()
    yield server
    server.close()
    assert not server.complaints(), server.complaints()


@pytest.fixture
def person() -> Iterator[Callable[..., Writer]]:
    made: list[Writer] = []

    def make(uid: int, umask: int = 0o077, lab: bool = True) -> Writer:
        made.append(Writer(uid=uid, gids=(uid, LAB) if lab else (uid,), umask=umask))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_everybody_can_use_what_the_others_write(served: Server, person: Callable[..., Writer]) -> None:
    record = served.json("space", "create", "lab", "--group", str(LAB))
    root = Path(record["path"])
    for above in (served.data, served.data / "projects"):
        os.chmod(above, 0o755)
    dav = served.space_dav(record)
    instrument, colleague = person(INSTRUMENT), person(COLLEAGUE, 0o022)
    # What an instrument with a careful umask writes, the server reads and replaces.
    instrument.do("mkdir", root / "run1")
    instrument.do("open", root / "run1/data")
    instrument.do("append", "measured")
    instrument.do("close")
    assert dav.get(b"run1/data") == b"measured"
    dav.put(b"run1/data", b"corrected")
    dav.put(b"run1/notes", b"by the server")
    dav.expect(201, method="MKCOL", path=b"run1/plots")
    dav.expect(201, method="COPY", path=b"run1", Destination=f"{dav.prefix}/run2")
    dav.expect(201, method="MOVE", path=b"run1/notes", Destination=f"{dav.prefix}/run1/moved")
    # What the server wrote, the group edits, and the instrument still does.
    for writer in (instrument, colleague):
        for path in ("run1/data", "run1/moved", "run2/data", "run2/notes"):
            writer.do("open", root / path)
            writer.do("append", "+")
            writer.do("close")
        for path in ("run1/plots", "run2", "run2/plots"):
            writer.do("open", root / path / f"by-{id(writer)}")
            writer.do("close")
    assert dav.get(b"run1/data") == b"corrected++"
    settled(os.fsencode(root), dav, wait=agree)
    assert {found.permissions for found in dav.propfind(b"run1")} and all(
        dav.request("GET", found.path).status == 200 for found in dav.propfind(b"run1") if not found.is_dir
    )
    # Even a file that its owner had closed to the group stays theirs to edit when the server replaced it.
    os.chmod(root / "run1/moved", 0o600)
    os.chown(root / "run1/moved", INSTRUMENT, INSTRUMENT)
    dav.put(b"run1/moved", b"again")
    instrument.do("open", root / "run1/moved")
    with pytest.raises(PermissionError):
        colleague.do("open", root / "run1/moved")
    stranger = person(STRANGER, lab=False)
    for path in ("", "run1", "run1/data"):
        with pytest.raises(PermissionError):
            stranger.do("read" if path.endswith("data") else "list", root / path)
    dav.expect(204, method="DELETE", path=b"run1")
    assert served.fsd("check")


def test_a_group_that_the_service_is_not_in(served: Server) -> None:
    done = served.run("space", "create", "other", "--group", "4999")
    assert done.returncode == 1 and "usermod -aG 4999" in done.stderr
    done = served.run("space", "create", "other", "--group", "no-such-group")
    assert done.returncode == 1 and "no group" in done.stderr
    assert not (served.data / "projects/other").exists()
    shutil.rmtree(served.data / "none", ignore_errors=True)
