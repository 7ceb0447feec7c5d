"""One suite of file operations, through every carrier. Each answer is checked on disk, by the etags and by
the sizes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conformance.carriers import Carrier, Refused
from tests.conformance.mount_carrier import MountCarrier


def on_disk(carrier: Carrier, path: bytes) -> bytes:
    return Path(os.fsdecode(carrier.root + b"/" + path)).read_bytes()


def refused(why: str, *ways: str):
    """The operation must be refused, for one of these reasons."""
    expected = {why, *ways}

    class Check:
        def __enter__(self) -> None: ...

        def __exit__(self, kind, error, trace) -> bool:
            assert isinstance(error, Refused), f"not refused ({error!r})"
            assert error.why in expected, error
            return True

    return Check()


def tree(carrier: Carrier) -> None:
    carrier.make_directory(b"d")
    carrier.make_directory(b"d/e")
    carrier.put(b"d/f", b"12345")
    carrier.put(b"d/e/g", b"678")


def test_put_get_and_what_is_shown(carrier: Carrier) -> None:
    etag = carrier.put(b"f", b"hello")
    seen = carrier.look(b"f")
    assert (seen.kind, seen.size, seen.etag) == ("f", 5, etag)
    assert carrier.get(b"f") == on_disk(carrier, b"f") == b"hello"
    assert carrier.look(b"").size == 5


def test_replacing_keeps_the_id_and_changes_the_etag(carrier: Carrier) -> None:
    first = carrier.put(b"f", b"hello")
    ident, root = carrier.look(b"f").id, carrier.look(b"").etag
    second = carrier.put(b"f", b"world")
    assert second != first and carrier.look(b"f").id == ident and carrier.look(b"").etag != root
    assert carrier.get(b"f") == b"world"


def test_an_empty_file(carrier: Carrier) -> None:
    carrier.put(b"empty", b"")
    assert carrier.get(b"empty") == b"" and carrier.look(b"empty").size == 0


def test_conditions(carrier: Carrier) -> None:
    etag = carrier.put(b"f", b"1", new=True)
    with refused("precondition", "exists"):
        carrier.put(b"f", b"2", new=True)
    with refused("precondition"):
        carrier.put(b"f", b"2", if_match="0" * 32)
    with refused("precondition"):
        carrier.put(b"missing", b"2", if_match=etag)
    assert on_disk(carrier, b"f") == b"1" and not os.path.exists(carrier.root + b"/missing")
    carrier.put(b"f", b"2", if_match=etag)
    assert carrier.get(b"f") == b"2"


def test_what_is_not_there(carrier: Carrier) -> None:
    for operation in (carrier.get, carrier.look, carrier.names, carrier.delete):
        with refused("missing"):
            operation(b"nothing")
    with refused("parent", "missing"):
        carrier.put(b"no/file", b"x")
    with refused("parent", "missing"):
        carrier.make_directory(b"no/directory")
    with refused("missing"):
        carrier.move(b"nothing", b"else")
    assert carrier.names(b"") == {}


def test_directories(carrier: Carrier) -> None:
    tree(carrier)
    assert {name: (seen.kind, seen.size) for name, seen in carrier.names(b"d").items()} == {
        b"e": ("d", 3),
        b"f": ("f", 5),
    }
    assert carrier.look(b"d").size == carrier.look(b"").size == 8
    with refused("exists"):
        carrier.make_directory(b"d")
    with refused("exists"):
        carrier.make_directory(b"d/f")


def test_every_change_moves_the_root_etag(carrier: Carrier) -> None:
    etags = [carrier.look(b"").etag]

    def step(*_: object) -> None:
        etags.append(carrier.look(b"").etag)

    step(carrier.make_directory(b"d"))
    step(carrier.put(b"d/f", b"1"))
    step(carrier.put(b"d/f", b"2"))
    step(carrier.move(b"d/f", b"d/g"))
    step(carrier.copy(b"d/g", b"h"))
    step(carrier.delete(b"h"))
    step(carrier.delete(b"d"))
    assert len(set(etags)) == len(etags)


def test_only_the_ancestors_change(carrier: Carrier) -> None:
    tree(carrier)
    carrier.make_directory(b"other")
    if isinstance(carrier, MountCarrier):
        carrier.looked_at()
    before = {path: carrier.look(path).etag for path in (b"", b"d", b"d/e", b"other", b"d/f")}
    carrier.put(b"d/f", b"changed")
    after = {path: carrier.look(path).etag for path in before}
    assert {path for path in before if before[path] != after[path]} == {b"", b"d", b"d/f"}


def test_move_keeps_ids_and_file_etags(carrier: Carrier) -> None:
    tree(carrier)
    before = {path: carrier.look(path) for path in (b"d", b"d/e", b"d/f", b"d/e/g")}
    assert carrier.move(b"d", b"moved") is True
    for path, seen in before.items():
        now = carrier.look(b"moved" + path[1:])
        assert now.id == seen.id and (seen.kind == "d" or now.etag == seen.etag)
    with refused("missing"):
        carrier.look(b"d")
    assert carrier.look(b"").size == 8


def test_move_over_something(carrier: Carrier) -> None:
    carrier.put(b"a", b"1")
    carrier.put(b"b", b"22")
    # A file just written that is renamed over another one is how programs save: there the other's id stays.
    kept = carrier.look(b"b" if carrier.saves_by_rename else b"a").id
    with refused("precondition", "exists"):
        carrier.move(b"a", b"b", overwrite=False)
    assert carrier.get(b"b") == b"22"
    assert carrier.move(b"a", b"b") is False
    assert carrier.get(b"b") == b"1" and carrier.look(b"b").id == kept and carrier.look(b"").size == 1


def test_move_a_file_over_a_directory_and_back(carrier: Carrier) -> None:
    tree(carrier)
    carrier.put(b"x", b"1")
    assert carrier.move(b"x", b"d") is False
    assert carrier.get(b"d") == b"1" and carrier.look(b"").size == 1
    carrier.make_directory(b"y")
    assert carrier.move(b"y", b"d") is False
    assert carrier.names(b"d") == {}


def test_moves_that_make_no_sense(carrier: Carrier) -> None:
    tree(carrier)
    with refused("forbidden", "parent", "precondition"):
        carrier.move(b"d", b"d/e/inside")
    with refused("forbidden", "precondition", "exists"):
        carrier.move(b"d", b"d")
    with refused("parent", "missing"):
        carrier.move(b"d", b"no/where")
    assert carrier.look(b"").size == 8 and set(carrier.names(b"")) == {b"d"}


def test_copies_are_new_nodes(carrier: Carrier) -> None:
    tree(carrier)
    assert carrier.copy(b"d", b"copy") is True
    ids = {carrier.look(path).id for path in (b"d", b"d/e", b"d/f", b"d/e/g")}
    copies = {carrier.look(path).id for path in (b"copy", b"copy/e", b"copy/f", b"copy/e/g")}
    assert len(copies) == 4 and not ids & copies
    assert carrier.get(b"copy/e/g") == b"678" and carrier.look(b"").size == 16


def test_copy_over_something(carrier: Carrier) -> None:
    tree(carrier)
    carrier.put(b"x", b"1")
    with refused("precondition", "exists"):
        carrier.copy(b"x", b"d/f", overwrite=False)
    assert carrier.copy(b"x", b"d/f") is False
    assert carrier.get(b"d/f") == b"1" and carrier.get(b"x") == b"1"


def test_delete_a_tree(carrier: Carrier) -> None:
    tree(carrier)
    carrier.delete(b"d")
    assert carrier.names(b"") == {} and carrier.look(b"").size == 0
    assert not os.path.lexists(carrier.root + b"/d")
    carrier.make_directory(b"d")
    assert carrier.names(b"d") == {}


@pytest.mark.parametrize(
    "name", [b"q?mark", b"semi;colon", b"ha#sh", b"per%25cent", b"plus+", b" space ", "ü漢".encode()]
)
def test_names(carrier: Carrier, name: bytes) -> None:
    carrier.put(name, b"1")
    assert on_disk(carrier, name) == b"1" and set(carrier.names(b"")) == {name}
    carrier.move(name, name + b"2")
    assert set(os.listdir(carrier.root)) == {name + b"2", b".fsd"}
    carrier.copy(name + b"2", name)
    carrier.delete(name)
    assert set(carrier.names(b"")) == {name + b"2"}


@pytest.mark.parametrize("name", [b"bad\xff", b"new\nline", b"tab\t", b"x" * 256])
def test_names_that_may_not_be_made(carrier: Carrier, name: bytes) -> None:
    carrier.put(b"fine", b"1")
    if carrier.any_name and len(name) <= 255:
        carrier.move(b"fine", name)
        assert carrier.get(name) == b"1" and set(carrier.names(b"")) == {name}
        return
    for operation in (
        lambda: carrier.put(name, b"x"),
        lambda: carrier.make_directory(name),
        lambda: carrier.move(b"fine", name),
        lambda: carrier.copy(b"fine", name),
    ):
        with refused("name"):
            operation()
    assert set(carrier.names(b"")) == {b"fine"}


def test_internals_are_hidden(carrier: Carrier) -> None:
    for operation in (carrier.look, carrier.names, carrier.get, carrier.delete):
        for path in (b".fsd", b".fsd/space.json", b".fsd/trash"):
            with refused("missing", "forbidden"):
                operation(path)
    with refused("missing", "forbidden", "exists", "parent", "name"):
        carrier.put(b".fsd/x", b"1")
    carrier.put(b"x", b"1")
    with refused("missing", "forbidden", "exists", "parent", "precondition", "name"):
        carrier.move(b"x", b".fsd")
    assert carrier.get(b"x") == b"1" and b".fsd" not in carrier.names(b"")


def test_what_was_made_on_disk(carrier: Carrier) -> None:
    os.mkdir(carrier.root + b"/made")
    Path(os.fsdecode(carrier.root + b"/made/file")).write_bytes(b"straight")
    os.symlink("file", carrier.root + b"/made/link")
    os.mkfifo(carrier.root + b"/made/fifo")
    assert set(carrier.names(b"made")) == {b"file", b"link", b"fifo"}
    assert carrier.get(b"made/file") == b"straight"
    with refused("forbidden", "kind", "missing", "parent"):
        carrier.get(b"made/link")
    carrier.delete(b"made/fifo")
    carrier.move(b"made/link", b"moved-link")
    assert os.readlink(carrier.root + b"/moved-link") == b"file"


def test_put_does_not_write_through_a_link(carrier: Carrier, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"precious")
    os.symlink(os.fsencode(outside), carrier.root + b"/link")
    os.symlink(os.fsencode(tmp_path), carrier.root + b"/way")
    try:
        carrier.put(b"link", b"1")
    except Refused:
        pass
    with refused("missing", "forbidden", "parent", "kind", "other"):
        carrier.put(b"way/outside", b"1")
    assert outside.read_bytes() == b"precious"


def test_a_hard_link_is_left_alone(carrier: Carrier) -> None:
    """Replacing one name leaves the other with the old content."""
    carrier.put(b"a", b"old")
    os.link(carrier.root + b"/a", carrier.root + b"/b")
    carrier.put(b"a", b"new")
    assert (carrier.get(b"a"), carrier.get(b"b")) == (b"new", b"old")
