"""Real trees and the programs of a real system, run on them while they are served.

After each step, within seconds: every listing equals the disk, every size a walk, ids are unique and stable, and the
etag of every ancestor of a change moved, and no other directory's.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.oracle import Snapshot, ancestors, changed_files, etag_errors, settled, unstable_ids
from tests.support.serving import Server
from tests.support.trees import copy_bounded, documentation, python_library
from tests.support.waiting import agree, wait_for

DEADLINE = 60.0


class Tree:
    """One served space and what was last agreed about it."""

    def __init__(self, server: Server, alias: str, deadline: float = DEADLINE) -> None:
        self.deadline = deadline
        record = server.space(alias)
        self.server, self.record = server, record
        self.root = Path(record["path"])
        self.dav = server.space_dav(record)
        self.last: Snapshot | None = None
        self._young: set[bytes] = set()
        """Paths that appeared with the last agreement: a new directory's etag may move once more, when it is first
        looked into."""

    def settle(self, *, timeout: float | None = None) -> Snapshot:
        """Wait until disk and server agree on everything; the ids of what stayed must have stayed."""
        timeout = timeout or self.deadline
        new = settled(os.fsencode(self.root), self.dav, wait=agree, timeout=timeout, what=self.record["name"])
        if self.last is not None:
            assert not (wrong := unstable_ids(self.last, new)), wrong[:8]
            assert not (wrong := changed_files(self.last, new)), wrong[:8]
            self._young = set(new.disk.keys() - self.last.disk.keys())
        self.last = new
        return new

    def changed(self, *paths: str | bytes, timeout: float | None = None) -> Snapshot:
        """Settle, and the etags of exactly the ancestors of `paths` must have moved since the last agreement."""
        old, young = self.last, self._young
        assert old is not None
        new = self.settle(timeout=timeout)
        self._check_etags(old, new, [os.fsencode(path) for path in paths], young)
        return new

    @staticmethod
    def _check_etags(old: Snapshot, new: Snapshot, changed: list[bytes], young: set[bytes]) -> None:
        free = {f"the etag of {path!r} changed for nothing" for path in young | ancestors(young)}
        wrong = [each for each in etag_errors(old, new, changed) if each not in free]
        assert not wrong, wrong[:8]

    def new_names(self) -> list[bytes]:
        """Every path that is new or gone since the last agreement, settled."""
        old, young = self.last, self._young
        assert old is not None
        new = self.settle()
        paths = [*(new.disk.keys() ^ old.disk.keys())]
        self._check_etags(old, new, [*paths, *_rewritten(old, new)], young)
        return paths

    def id(self, path: str) -> str:
        """The oc:id of a path as of the last agreement."""
        assert self.last is not None
        return self.last.served[path.encode()].id

    def etag(self, path: str) -> str:
        """The etag of a path as of the last agreement."""
        assert self.last is not None
        return self.last.served[path.encode()].etag


def _rewritten(old: Snapshot, new: Snapshot) -> Iterable[bytes]:
    return (path for path in new.disk.keys() & old.disk.keys() if _content(old, path) != _content(new, path))


def _content(snapshot: Snapshot, path: bytes) -> tuple[object, ...]:
    entry = snapshot.disk[path]
    if entry.kind != "d":
        return entry.kind, entry.size, entry.mtime, entry.node, snapshot.served[path].etag
    return (entry.kind, entry.node)


def run(*command: str | os.PathLike[str], cwd: Path | None = None) -> str:
    """A program of the system; it must succeed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def big(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--big"))


@pytest.fixture(scope="module")
def trees(shared_server: Server, tmp_path_factory: pytest.TempPathFactory, big: bool) -> dict[str, Tree]:
    """Two adopted copies of what a system has: its documentation and a Python library."""
    base = tmp_path_factory.mktemp("adopted")
    limit = 40_000 if big else 150  # all of it is walked and listed some hundred times
    copy_bounded(documentation(big=big), base / "docs", limit, big=big)
    copy_bounded(python_library(), base / "library", 2 * limit, big=big)
    for name in ("docs", "library"):
        shared_server.fsd("space", "adopt", str(base / name), "--name", name)
    for save in SAVES:
        (base / "docs/old").mkdir(exist_ok=True)
        (base / f"docs/old/{save.__name__}.txt").write_text("as it was")
    found = {name: Tree(shared_server, name, DEADLINE * (10 if big else 1)) for name in ("docs", "library")}
    for tree in found.values():
        tree.settle(timeout=300 if big else 60)
    return found


@pytest.fixture
def docs(trees: dict[str, Tree]) -> Tree:
    return trees["docs"]


@pytest.fixture
def library(trees: dict[str, Tree]) -> Tree:
    return trees["library"]


@pytest.fixture
def work(docs: Tree, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of the test's own in the documentation space, settled."""
    path = docs.root / f"work-{request.node.name[:40]}"
    path.mkdir()
    (path / "keep").mkdir()
    (path / "keep/untouched.txt").write_text("untouched")
    docs.settle()
    yield path
    run("chmod", "-R", "u+rwX", path)
    shutil.rmtree(os.fsencode(path))
    docs.settle()


def below(work: Path, name: str) -> str:
    """The path of `name` in the space of `work` (which lies in its root)."""
    return f"{work.name}/{name}"


# -- programs


def test_git_clone_and_checkouts(docs: Tree, work: Path, tmp_path: Path) -> None:
    source = tmp_path / "repository"
    source.mkdir()
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    run("git", "init", "-q", "-b", "main", ".", cwd=source)
    for number in range(40):
        (source / f"d{number % 5}").mkdir(exist_ok=True)
        (source / f"d{number % 5}/f{number}").write_text(f"{number}\n" * number)
    run("git", "add", ".", cwd=source)
    run("git", *identity, "commit", "-qm", "first", cwd=source)
    run("git", "mv", "d1", "moved", cwd=source)
    run("git", "rm", "-rq", "d2", cwd=source)
    (source / "d0/f0").write_text("changed")
    run("git", *identity, "commit", "-qam", "second", cwd=source)
    run("git", "clone", "-q", source, work / "clone")
    assert docs.new_names()
    kept = docs.id(below(work, "clone/d3/f3"))
    for commit in ("HEAD~1", "main", "HEAD~1", "main"):
        run("git", "-C", str(work / "clone"), "checkout", "-q", commit)
        docs.new_names()
    assert docs.id(below(work, "clone/d3/f3")) == kept
    run("git", "-C", str(work / "clone"), "gc", "-q")
    docs.new_names()


def test_rsync_with_xattrs_makes_copies_not_doubles(docs: Tree, library: Tree, work: Path) -> None:
    run("rsync", "-aX", f"{library.root}/", work / "synced", "--exclude=.fsd")
    docs.new_names()
    ids = {resource.id for resource in docs.last.served.values()}
    assert not ids & {resource.id for resource in library.last.served.values()}
    before = {path: resource.id for path, resource in docs.last.served.items()}
    some = next(path for path in sorted((work / "synced").rglob("*.py")) if path.stat().st_size)
    some.write_text("# changed\n")
    run("rsync", "-aX", "--ignore-times", f"{library.root}/", work / "synced", "--exclude=.fsd")
    docs.settle()
    assert {path: resource.id for path, resource in docs.last.served.items()} == before


def test_cp_with_attributes(docs: Tree, work: Path) -> None:
    origin = work / "keep"
    kept = docs.id(below(work, "keep/untouched.txt"))
    run("cp", "-a", origin, work / "copy")
    docs.changed(below(work, "copy"))
    assert docs.id(below(work, "keep/untouched.txt")) == kept
    assert docs.id(below(work, "copy/untouched.txt")) != kept


def test_tar_out_and_in(docs: Tree, library: Tree, work: Path, tmp_path: Path) -> None:
    run("tar", "--xattrs", "--exclude=./.fsd", "-cf", tmp_path / "all.tar", "-C", library.root, ".")
    (work / "unpacked").mkdir()
    run("tar", "--xattrs", "--xattrs-include=*", "-xf", tmp_path / "all.tar", "-C", work / "unpacked")
    docs.new_names()
    ids = {path: resource.id for path, resource in docs.last.served.items()}
    run("tar", "--xattrs", "-xf", tmp_path / "all.tar", "-C", work / "unpacked", "--overwrite")
    docs.last = None  # each file was written anew in its place: its etag may be another one, its id may not
    assert {path: resource.id for path, resource in docs.settle().served.items()} == ids


def test_sed_in_place_keeps_the_id(docs: Tree, work: Path) -> None:
    file = work / "keep/untouched.txt"
    kept, etag = docs.id(below(work, "keep/untouched.txt")), docs.etag(below(work, "keep/untouched.txt"))
    for number in range(5):
        run("sed", "-i", f"s/$/ {number}/", file)
        docs.changed(below(work, "keep/untouched.txt"))
        assert docs.id(below(work, "keep/untouched.txt")) == kept
    assert docs.etag(below(work, "keep/untouched.txt")) != etag


def test_moves_within_and_across_spaces(docs: Tree, library: Tree, work: Path) -> None:
    shutil.copytree(library.root, work / "subtree", ignore=shutil.ignore_patterns(".fsd"), symlinks=True)
    docs.new_names()
    prefix = os.fsencode(below(work, "subtree/"))
    before = {path[len(prefix) :]: r.id for path, r in docs.last.served.items() if path.startswith(prefix)}
    run("mv", work / "subtree", work / "keep/moved")
    docs.changed(below(work, "subtree"), below(work, "keep/moved"))
    prefix = os.fsencode(below(work, "keep/moved/"))
    after = {path[len(prefix) :]: r.id for path, r in docs.last.served.items() if path.startswith(prefix)}
    assert after == before
    library.settle()
    run("mv", work / "keep/moved", library.root / "from-docs")
    docs.changed(below(work, "keep/moved"))
    library.changed("from-docs")
    run("rm", "-rf", library.root / "from-docs")
    library.changed("from-docs")


def test_rm_rf_and_again(docs: Tree, library: Tree, work: Path) -> None:
    for _ in range(2):
        run("cp", "-r", library.root, work / "tree")
        docs.settle()
        run("rm", "-rf", work / "tree")
        docs.changed(below(work, "tree"))


# -- system calls


def test_truncate_append_and_touch(docs: Tree, work: Path) -> None:
    name = below(work, "keep/untouched.txt")
    file = work / "keep/untouched.txt"
    kept = docs.id(name)
    run("truncate", "-s", "100000", file)
    docs.changed(name)
    run("truncate", "-s", "0", file)
    docs.changed(name)
    with open(file, "ab", buffering=0) as log:
        for number in range(3):
            log.write(b"line\n" * (number + 1))
            docs.changed(name)
    docs.settle()
    run("touch", "-r", "/etc/passwd", file)
    docs.changed(name)
    assert docs.id(name) == kept


def test_same_size_same_mtime_is_another_etag(docs: Tree, work: Path) -> None:
    name = below(work, "keep/untouched.txt")
    file = work / "keep/untouched.txt"
    status = file.stat()
    etag = docs.etag(name)
    with open(file, "r+b") as opened:
        opened.write(b"UN")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

    def moved() -> None:
        docs.last = docs.settle()
        assert docs.etag(name) != etag

    docs.last = None
    agree(moved, timeout=DEADLINE, what="another etag")


def test_metadata_alone_moves_no_file_etag(docs: Tree, work: Path) -> None:
    name = below(work, "keep/untouched.txt")
    file = work / "keep/untouched.txt"
    etag, ident = docs.etag(name), docs.id(name)
    run("chmod", "600", file)
    run("setfattr", "-n", "user.colour", "-v", "blue", file)
    os.rename(file, work / "keep/renamed.txt")
    docs.changed(name, below(work, "keep/renamed.txt"))
    assert (
        docs.etag(below(work, "keep/renamed.txt")) == etag
        and docs.id(below(work, "keep/renamed.txt")) == ident
    )


def test_symlinks_that_dangle_loop_and_leave(docs: Tree, work: Path) -> None:
    os.symlink("nowhere", work / "dangling")
    os.symlink("loop", work / "loop")
    os.symlink("/etc", work / "leaving")
    os.symlink(".", work / "self")
    os.symlink("../..", work / "keep/up")
    names = [below(work, name) for name in ("dangling", "loop", "leaving", "self", "keep/up")]
    snapshot = docs.changed(*names)
    assert not any(path.startswith(os.fsencode(below(work, "leaving/"))) for path in snapshot.served)
    assert docs.dav.request("GET", os.fsencode(below(work, "leaving/passwd"))).status == 404
    assert docs.dav.request("GET", os.fsencode(below(work, "leaving"))).status in (403, 404, 409)
    for name in names:
        os.unlink(docs.root / name)
    docs.changed(*names)


def test_fifos_and_sockets_block_nobody(docs: Tree, work: Path) -> None:
    os.mkfifo(work / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        directory = os.open(work, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
        docs.changed(below(work, "fifo"), below(work, "socket"))
        assert docs.dav.request("GET", os.fsencode(below(work, "fifo"))).status in (403, 404, 409)
        os.unlink(work / "fifo")
        docs.changed(below(work, "fifo"))


ODD = [
    b"new\nline",
    b"bad\xff\xfeutf8",
    b"x" * 255,
    "ü ñ 漢字".encode(),
    b"q?mark;semi#hash%25 +&",
    b" lead",
    b"trail ",
    b"-rf",
    b"\x01\x7f",
]


@pytest.mark.parametrize("name", ODD, ids=[repr(name[:12]) for name in ODD])
def test_odd_names(docs: Tree, work: Path, name: bytes) -> None:
    base = os.fsencode(work)
    relative = os.fsencode(work.name) + b"/"
    os.mkdir(base + b"/" + name)
    with open(base + b"/" + name + b"/" + name, "wb") as file:
        file.write(b"content")
    docs.changed(relative + name)
    inside = relative + name + b"/" + name
    assert docs.dav.get(inside) == b"content"
    docs.dav.move(inside, relative + b"plain")
    assert os.path.exists(base + b"/plain")
    docs.changed(inside, relative + b"plain")
    docs.dav.delete(relative + name)
    assert not os.path.lexists(base + b"/" + name)
    docs.changed(relative + name)


def test_unreadable_entries_do_not_hide_their_neighbours(docs: Tree, work: Path) -> None:
    secret = work / "secret"
    secret.write_text("1234")
    secret.chmod(0)
    os.mkdir(work / "closed")
    (work / "closed/file").write_text("56")
    (work / "closed").chmod(0)
    if os.geteuid() == 0:  # root reads everything, and so does the oracle
        docs.changed(below(work, "secret"), below(work, "closed"))
        return
    listed = {resource.path.rpartition(b"/")[2] for resource in docs.dav.propfind(os.fsencode(work.name))}
    assert listed >= {b"secret", b"closed", b"keep"}
    assert docs.dav.get(os.fsencode(below(work, "keep/untouched.txt"))) == b"untouched"
    assert docs.dav.request("GET", os.fsencode(below(work, "secret"))).status in (403, 503)
    assert docs.dav.request("PROPFIND", os.fsencode(below(work, "closed")), None, {"Depth": "1"}).status in (
        403,
        503,
    )


def test_hard_links_count_at_each_name(docs: Tree, work: Path) -> None:
    os.link(work / "keep/untouched.txt", work / "second")
    docs.changed(below(work, "second"))
    kept = docs.id(below(work, "keep/untouched.txt"))
    assert docs.id(below(work, "second")) != kept
    with open(work / "keep/untouched.txt", "a") as file:
        file.write("more")
    docs.changed(below(work, "keep/untouched.txt"), timeout=60)
    os.unlink(work / "second")
    docs.changed(below(work, "second"))
    assert docs.id(below(work, "keep/untouched.txt")) == kept


def test_files_and_directories_trade_places(docs: Tree, work: Path) -> None:
    (work / "thing").write_text("file")
    docs.changed(below(work, "thing"))
    first = docs.id(below(work, "thing"))
    (work / "thing").unlink()
    (work / "thing").mkdir()
    (work / "thing/inside").write_text("now a directory")
    docs.changed(below(work, "thing"), below(work, "thing/inside"))
    assert docs.id(below(work, "thing")) != first
    shutil.rmtree(work / "thing")
    (work / "thing").write_text("a file again")
    docs.changed(below(work, "thing"))


# -- saving the way editors do


def _vim(file: Path, text: str) -> None:
    """backupcopy=no: the old one becomes the backup, a new one is written, the backup goes."""
    backup = file.with_name(file.name + "~")
    os.rename(file, backup)
    file.write_text(text)
    backup.unlink()


def _emacs(file: Path, text: str) -> None:
    """The backup stays."""
    backup = file.with_name(file.name + "~")
    backup.unlink(missing_ok=True)
    os.rename(file, backup)
    file.write_text(text)


def _replace(file: Path, text: str) -> None:
    """A temporary file renamed over."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, file)


def _office(file: Path, text: str) -> None:
    """A temporary file, the old one aside, the new one in its place, the old one deleted."""
    temporary, aside = file.with_name("~$new.tmp"), file.with_name("~WRL0001.tmp")
    temporary.write_text(text)
    os.rename(file, aside)
    os.rename(temporary, file)
    aside.unlink()


def _delete_and_write(file: Path, text: str) -> None:
    """The crudest one."""
    file.unlink()
    file.write_text(text)


SAVES = [_vim, _emacs, _replace, _office, _delete_and_write]


@pytest.mark.parametrize("save", SAVES)
def test_save_by_rename_keeps_the_id(docs: Tree, save: Callable[[Path, str], None]) -> None:
    name = f"old/{save.__name__}.txt"
    file = docs.root / name
    # An old file: it has been closed and quiet for a while, so that it carries its label.
    wait_for(lambda: "user.fsd.id" in os.listxattr(file), timeout=30, what="a labelled file")
    kept = docs.id(name)
    for number in range(4):
        etag = docs.etag(name)
        save(file, "another text " * number)
        docs.new_names()
        assert docs.id(name) == kept, f"{save.__name__} lost the id in round {number}"
        assert docs.etag(name) != etag


# -- the watcher goes away


def test_what_happens_without_the_watcher_is_found(docs: Tree, work: Path) -> None:
    docs.server.allow_log(r"watcher|restart|exited|died|ended|signal")
    (watcher, *_) = docs.server.child("watcher")
    os.kill(watcher, signal.SIGKILL)
    for number in range(50):
        (work / f"f{number}").write_text("x" * number)
    (work / "deep/er/est").mkdir(parents=True)
    (work / "deep/er/est/file").write_text("deep")
    docs.settle(timeout=60)
    assert docs.last is not None and os.fsencode(below(work, "deep/er/est/file")) in docs.last.served
