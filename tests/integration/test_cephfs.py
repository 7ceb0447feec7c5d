"""fsd on a real CephFS: two clients of one filesystem, one that writes and one that serves."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsd.core import errors, ids, index, operations, tree, versions
from fsd.core.reconcile import reconcile
from fsd.core.space import Space
from tests.conformance import test_operations as suite
from tests.conformance.carriers import Carrier, CoreCarrier
from tests.support.ceph import Ceph
from tests.support.kafka import says as notified
from tests.support.kafka.shared import SharedBroker
from tests.support.serving import Server
from tests.support.waiting import wait_for
from tests.support.worlds import differences, drain, grow_quiet, make_space, sweep
from tests.unit.core_space import put
from watcher.sources.rctime import RecursiveTimes

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def served(ceph: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mount that fsd serves."""
    return ceph.mount(tmp_path_factory.mktemp("served") / "m")


@pytest.fixture(scope="module")
def writing(ceph: Ceph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mount that others write through."""
    return ceph.mount(tmp_path_factory.mktemp("writing") / "m")


@pytest.fixture
def space(served: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Space]:
    """An empty space of the test's own on the CephFS."""
    made = make_space(tmp_path / "space", root=served / f"s{abs(hash(request.node.nodeid)):x}")
    sweep(made)
    yield made
    made.close()


@pytest.fixture
def carrier(space: Space) -> Carrier:
    """The core on CephFS."""
    return CoreCarrier(space)


globals().update((name, test) for name, test in vars(suite).items() if name.startswith("test_"))
"""The whole suite of file operations, through the carrier above."""


def at(mount: Path, space: Space) -> Path:
    """A space's root in another mount."""
    return mount / os.fsdecode(os.path.basename(space.root))


def test_what_the_other_client_does_is_found_and_keeps_its_ids(space: Space, writing: Path) -> None:
    other = at(writing, space)
    (other / "d").mkdir()
    (other / "d" / "f").write_bytes(b"12345")
    sweep(space)
    node = tree.lookup(space, b"d/f").id
    (other / "d" / "f").rename(other / "g")
    (other / "g").write_bytes(b"changed and moved between two looks")
    sweep(space)
    assert tree.lookup(space, b"g").id == node and differences(space) == []
    with open(other / "h", "wb"):
        assert tree.lookup(space, b"h").id != node
    os.unlink(other / "g")
    (other / "k").write_bytes(b"another file")
    assert tree.lookup(space, b"k").id != node


def test_ids_are_the_same_through_each_client_and_need_no_attribute(space: Space, writing: Path) -> None:
    put(space, b"f")
    here, there = os.open(space.root, os.O_RDONLY), os.open(at(writing, space), os.O_RDONLY)
    try:
        assert ids.told_by(here) == "lasting inode numbers"
        for name in (b"", b"f"):
            ours = ids.node_binding(here, name, ids.statx(here, name))
            assert ours == ids.node_binding(there, name, ids.statx(there, name)) and not ids.is_weak(ours)
    finally:
        os.close(here)
        os.close(there)


def test_labels_outlive_the_index(space: Space, writing: Path) -> None:
    put(space, b"f", b"1")
    entry, _ = put(space, b"f", b"2")
    assert os.getxattr(at(writing, space) / "f", "user.fsd.id").decode().split(":")[1] == entry.id
    grow_quiet(space)
    space.index.path.unlink()
    sweep(space)
    again = tree.lookup(space, b"f")
    assert (again.id, again.etag) == (entry.id, entry.etag)


def test_no_inode_number_comes_twice(served: Path) -> None:
    """That is what ids on a CephFS stand on: unlike elsewhere, no number of a deleted file is given to another."""
    place, seen = served / "numbers", set[int]()
    place.mkdir()
    for _ in range(3):
        for number in range(150):
            (place / str(number)).touch()
        numbers = {entry.inode() for entry in os.scandir(place)}
        assert not numbers & seen
        seen |= numbers
        for number in range(150):
            (place / str(number)).unlink()


def several_names(place: Path, count: int) -> list[Path]:
    """A file with several names, each in a directory of its own below `place`."""
    paths = [place / str(number) / "f" for number in range(count)]
    for path in paths:
        path.parent.mkdir(parents=True)
    paths[0].write_bytes(b"12345")
    for path in paths[1:]:
        os.link(paths[0], path)
    return paths


def replace(path: Path) -> None:
    """As programs save."""
    (path.parent / "new").write_bytes(b"123")
    os.rename(path.parent / "new", path)
    fd = os.open(path.parent, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def is_forgotten(path: Path) -> bool:
    """Whether this client says that there is no such name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    return False


@pytest.mark.parametrize("how", ["names", "sweep", "listing", "lookup", "delete"])
def test_a_name_that_the_client_forgot_is_not_gone(space: Space, how: str) -> None:
    """ceph-fuse takes the other names of a file that was replaced by a rename for absent, in listings too."""
    root = Path(os.fsdecode(space.root))
    for turn in range(40):
        paths = several_names(root / str(turn), 4)
        sweep(space)
        replace(paths[0])
        gone = next((path for path in paths[1:] if is_forgotten(path)), None)
        if gone is None:
            continue
        at = os.fsencode(gone.relative_to(root))
        parent = os.path.dirname(at)
        with space.index.read() as db:
            row = index.find(db, at)
        assert row is not None
        if how == "names":
            reconcile(space, parent, [b"f"])
        elif how == "sweep":
            sweep(space)
        elif how == "listing":
            assert [entry.path for entry in tree.listing(space, parent)[1]] == [at]
        elif how == "delete":
            operations.delete(space, at)
            assert os.listdir(gone.parent) == []
            return
        assert tree.lookup(space, at).id == row.id.hex() and os.listdir(gone.parent) == ["f"]
        return
    pytest.fail("no name was ever forgotten: is this another client?")


def test_what_is_replaced_is_kept_also_where_the_client_forgets_it(space: Space) -> None:
    versions.use(space.state_dir, 86_400.0)
    for turn in range(20):
        entry, _ = put(space, b"f", b"%d" % turn, mtime_ns=turn * 10**9)
    kept = versions.items(space, entry.id)
    assert sorted(version.mtime_ns for version in kept) == [turn * 10**9 for turn in range(19)]
    assert os.listdir(space.root + b"/.fsd/staging") == []


def test_snapshots_are_neither_shown_nor_counted_nor_made(space: Space, writing: Path) -> None:
    operations.make_directory(space, b"d")
    put(space, b"d/f", b"12345")
    (at(writing, space) / "d" / ".snap" / "before").mkdir()
    try:
        assert (at(writing, space) / "d" / ".snap" / "before" / "f").read_bytes() == b"12345"
        before = tree.lookup(space, b"")
        sweep(space)
        assert [entry.path for entry in tree.listing(space, b"d")[1]] == [b"d/f"]
        assert tree.lookup(space, b"") == before and before.size == 5
        for path in (b".snap", b"d/.snap", b"d/.snap/before", b"d/.snap/before/f"):
            with pytest.raises(FileNotFoundError):
                tree.lookup(space, path)
            with pytest.raises(FileNotFoundError):
                tree.listing(space, path)
            with pytest.raises(OSError, match="reserved|exist"):
                operations.make_directory(space, path)
            with pytest.raises(FileNotFoundError):
                operations.delete(space, path)
        with pytest.raises(OSError, match="exist"):
            operations.make_directory(space, b"d/.snap/mine")
        with pytest.raises(errors.Forbidden):
            put(space, b"d/.snap")
        with pytest.raises(OSError, match="exist"):
            put(space, b"d/.snap/file")
        assert os.listdir(at(writing, space) / "d" / ".snap") == ["before"]
    finally:
        (at(writing, space) / "d" / ".snap" / "before").rmdir()


def test_a_quota_of_the_storage_refuses_and_leaves_nothing(space: Space, writing: Path) -> None:
    put(space, b"kept", b"1")
    os.setxattr(at(writing, space), "ceph.quota.max_files", b"24")
    refused: list[Any] = []

    def full() -> bool:
        try:
            put(space, b"n%d" % len(os.listdir(space.root)), b"x")
        except OSError as error:
            refused.append(error)
        return bool(refused)

    wait_for(full, what="the quota of the storage")
    assert refused[0].errno == errno.EDQUOT
    os.setxattr(at(writing, space), "ceph.quota.max_files", b"0")
    drain(space)
    assert differences(space) == [] and os.listdir(space.root + b"/.fsd/staging") == []


def hints_for(source: RecursiveTimes, path: bytes) -> None:
    """Collect until a directory is hinted."""
    wait_for(lambda: any(hint.dir == path for hint in source.collect(0.05)), timeout=30, what=f"{path!r}")


def test_what_no_notification_told_is_found_by_what_directories_sum_up(space: Space, writing: Path) -> None:
    other = at(writing, space)
    (other / "a" / "b" / "c").mkdir(parents=True)
    (other / "quiet").mkdir()
    (other / "a" / "b" / "c" / "f").write_bytes(b"12345")
    sweep(space)
    source = RecursiveTimes(space, asks=10_000)
    source.add("s", space.root, space.fsd_ident)
    try:
        hints_for(source, b"a/b/c")
        with open(other / "a" / "b" / "c" / "f", "r+b") as file:
            file.write(b"54321")  # in place, of the same size: no directory's own times show it
        hints_for(source, b"a/b/c")
        assert source.status("s") is not None and not source.status("s").errors
    finally:
        source.close()


def test_what_is_quiet_is_neither_asked_nor_hinted_again(space: Space, writing: Path) -> None:
    other = at(writing, space)
    for number in range(5):
        (other / "top" / str(number)).mkdir(parents=True)
    (other / "top" / "1" / "f").write_bytes(b"12345")
    sweep(space)
    source = RecursiveTimes(space, asks=10_000, margin=0.0)
    source.add("s", space.root, space.fsd_ident)
    try:
        source._floor = time.time() + 5.0  # all of this is long ago
        wait_for(lambda: source.collect(0.05) or source.asked, what="a round")
        assert source.asked == 1 and source.collect(0.05) == []
    finally:
        source.close()


def test_sums_that_do_not_add_up_lead_to_what_was_missed(space: Space, writing: Path) -> None:
    other = at(writing, space)
    (other / "a" / "b").mkdir(parents=True)
    (other / "right").mkdir()
    (other / "right" / "f").write_bytes(b"1")
    sweep(space)
    (other / "a" / "b" / "missed").write_bytes(b"12345")

    def summed() -> bool:
        whole, internals = (int(os.getxattr(place, "ceph.dir.rbytes")) for place in (other, other / ".fsd"))
        return whole - internals == 6

    wait_for(summed, timeout=40, what="the sum")
    source = RecursiveTimes(space, asks=10_000, margin=-60.0)
    source.add("s", space.root, space.fsd_ident)
    try:
        source._next_compare = 0.0
        found: set[bytes] = set()

        def descended() -> bool:
            found.update(hint.dir for hint in source.collect(0.05))
            return b"a/b" in found

        wait_for(descended, what="the directory whose bytes the index lacks")
        assert b"right" not in found
    finally:
        source.close()


def test_a_server_over_one_client_shows_what_the_other_writes(
    served: Path, writing: Path, make_server: Callable[..., Server]
) -> None:
    server = make_server(started=False, workers=1)
    server.data = served / "data"
    server.start()
    server.fsd("space", "create", "p")
    record = server.space("p")
    dav = server.space_dav(record)
    other = writing / "data" / "projects" / "p"
    before = dav.propfind(b"", 0)[0].etag
    (other / "d").mkdir()
    (other / "d" / "f").write_bytes(b"12345")
    assert dav.request("GET", b"d/f").body == b"12345"
    wait_for(lambda: dav.propfind(b"", 0)[0].etag != before, what="the root's etag")
    wait_for(lambda: dav.propfind(b"", 0)[0].size == 5, what="the root's size")

    def told() -> str:
        (space,) = [each for each in server.json_any("status")["spaces"] if each["name"] == "p"]
        return str(space.get("source"))

    wait_for(lambda: told() == "poll+rctime", what="the sources in status")
    assert dav.request("MKCOL", b".snap").status in (403, 405) and dav.request("GET", b".snap").status == 404
    os.setxattr(other, "ceph.quota.max_files", b"30")

    def refused() -> bytes:
        answer = dav.request("PUT", b"n%d" % time.monotonic_ns(), b"x")
        return answer.body if answer.status == 507 else b""

    assert b"quota of the storage" in wait_for(refused, what="the quota of the storage")


def test_what_is_notified_shows_at_once_and_what_is_not_soon(
    served: Path, writing: Path, broker: SharedBroker, make_server: Callable[..., Server]
) -> None:
    """The whole way: one client writes, Kafka tells, the server over the other client shows it."""
    topic = broker.topic()
    server = make_server(started=False, workers=1)
    server.data = served / "told"
    server.settings |= {
        "FSD_KAFKA_BROKERS": broker.address,
        "FSD_KAFKA_GROUP": topic,
        "FSD_CEPHFS_TOPICS": topic,
        "FSD_CEPHFS_PATHS": f"/={served}",
    }
    server.allow_log("Kafka at .*TimeoutError")  # a busy machine: it is said, and goes on
    server.start()
    server.fsd("space", "create", "p")
    dav = server.space_dav(server.space("p"))
    other, says = writing / "told" / "projects" / "p", notified.Ceph("/told/projects/p")

    def status() -> dict[str, Any]:
        (space,) = [each for each in server.json_any("status")["spaces"] if each["name"] == "p"]
        return dict(space)

    wait_for(
        lambda: (status().get("source"), status()["state"]) == ("cephfs+rctime", "watching"),
        timeout=40, what="the sources",
    )  # fmt: skip
    (other / "d").mkdir()
    broker.feed.send(topic, [says.made("d")])
    wait_for(lambda: {each.path for each in dav.propfind(b"", 1)} == {b"", b"d"}, what="a directory")
    delays = []
    for number in range(20):
        before = dav.propfind(b"", 0)[0].etag
        (other / "d" / f"f{number}").write_bytes(b"12345")
        broker.feed.send(topic, [says.changed(f"d/f{number}")])
        began = time.monotonic()
        wait_for(lambda etag=before: dav.propfind(b"", 0)[0].etag != etag, every=0.005, what="an etag")
        delays.append(time.monotonic() - began)
    print(f"root's etag after a notification: p95 {sorted(delays)[18] * 1000:.0f} ms")
    wait_for(lambda: dav.propfind(b"", 0)[0].size == 100, what="the sizes")
    before = dav.propfind(b"", 0)[0].etag
    (other / "d" / "f0").write_bytes(b"54321")  # of this nobody tells
    wait_for(lambda: dav.propfind(b"", 0)[0].etag != before, timeout=60, what="what was not notified")
