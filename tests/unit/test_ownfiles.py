"""Files of the service's own in a space's `.fsd`, damaged, replaced by something else, rolled back: each ends in one
sentence, changes no right, and leaves the rest of the space as it was."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsd.core import check, handover, marks, operations, properties, roots, trash, tree
from fsd.core.errors import FsdError, StorageUnavailable
from fsd.core.grants import Role
from fsd.core.installation import Installation
from fsd.core.locks import LockTable
from fsd.core.ownfiles import Unusable, parse, read
from fsd.core.registry import Registry
from fsd.core.space import Space, SpaceRecord
from tests.unit.core_space import put

BIG = b"<a xmlns='u:'>" + b"x" * 3000 + b"</a>"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def sock(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # an address is at most 108 bytes long
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


DAMAGE: dict[str, bytes | Callable[[Path], object]] = {
    "empty": b"",
    "junk": bytes(range(256)),
    "zeros": bytes(4096),
    "deep": b"[" * 100_000,
    "deep-object": b'{"properties":' * 50_000,
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"1" * 5000,
    "object": b"{}",
    "wrong-types": b'{"properties": [], "id": 1, "secret": [], "members": 1, "mac": 2, "space": {}, "number": "1"}',
    "surrogates": b'{"properties": "\\ud800", "mac": "\\ud800", "id": "\\ud800", "secret": "\\ud800"}',
    "endless": b" " * (20 << 20),
    "directory": lambda path: path.mkdir(),
    "fifo": fifo,
    "socket": sock,
    "link": lambda path: path.symlink_to("/etc/passwd"),
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    base = tmp_path_factory.mktemp("own")
    Installation.initialise(base / "state", base / "data")
    return Registry(base / "state")


@pytest.fixture(scope="module")
def record(registry: Registry) -> SpaceRecord:
    made = registry.create("space")
    user = registry.add_user("ann", "secret")
    registry.grants.grant(made, "user", user.id, user.name, Role.VIEWER)
    return made


@pytest.fixture(scope="module")
def shared(registry: Registry, record: SpaceRecord) -> Iterator[Space]:
    made = registry.open(record.id)
    put(made, b"f", b"1")
    properties.update(made, b"f", {"{u:}a": BIG, "{u:}small": b'<small xmlns="u:"/>'})
    yield made
    made.close()


@pytest.fixture
def space(record: SpaceRecord, shared: Space) -> Iterator[Space]:
    """With two entries in its trash."""
    for name in (b"gone", b"other"):
        put(shared, name, b"12345")
        operations.delete(shared, name)
    yield shared
    for part in ("files", "info"):
        for left in inside(record, f"trash/{part}").iterdir():
            remove(left)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink()


def inside(record: SpaceRecord, path: str) -> Path:
    return Path(os.fsdecode(record.path)) / ".fsd" / path


@pytest.fixture(params=DAMAGE)
def damage(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], None]]:
    how, sound = DAMAGE[request.param], {}

    def do(path: Path) -> None:
        sound[path] = path.read_bytes()
        path.unlink()
        if isinstance(how, bytes):
            path.write_bytes(how)
        else:
            how(path)

    yield do
    for path, content in sound.items():
        if os.path.lexists(path):
            remove(path)
        path.write_bytes(content)


def checked(space: Space) -> set[str]:
    """What `check` finds; it must come to its end."""
    return {finding.code for finding in check.check(space)}


def test_space_json(registry, record, space, damage):
    damage(inside(record, "space.json"))
    with pytest.raises(StorageUnavailable, match="space.json' is not usable: .+"):
        _ = Registry(registry.state_dir).open(record.id).secret
    with pytest.raises(FsdError, match="space.json' is damaged"):
        roots.read_identity(record.path, registry.installation.key)


def test_acl_json(registry, record, space, damage):
    ann = registry.accounts.get("ann")
    damage(inside(record, "acl.json"))
    again = Registry(registry.state_dir)
    sentence = again.grants.verify(record)
    assert sentence is not None and sentence.endswith("stay in force.") and len(sentence) < 400
    assert again.grants.role_of(record, ann) is Role.VIEWER
    identity = roots.read_identity(record.path, registry.installation.key)
    assert identity is not None and not identity.ours


def test_an_older_acl_comes_back(registry, record, space):
    """Signed, and overtaken: who was put out stays out."""
    ann = registry.accounts.get("ann")
    registry.grants.grant(record, "user", ann.id, ann.name, Role.EDITOR)
    file = inside(record, "acl.json")
    older = file.read_bytes()
    registry.grants.revoke(record, "user", ann.id)
    file.write_bytes(older)
    assert "older" in registry.grants.verify(record)
    assert Registry(registry.state_dir).grants.role_of(record, ann) is None
    registry.grants.mend(record)
    assert registry.grants.verify(record) is None
    assert registry.grants.role_of(record, ann) is None
    registry.grants.grant(record, "user", ann.id, ann.name, Role.VIEWER)


def test_properties(record, space, damage):
    node_id = tree.lookup(space, b"f").id
    damage(inside(record, f"meta/{node_id}.json"))
    assert set(properties.get_all(space, b"f")) == {"{u:}small"}
    assert "meta-damaged" in checked(space)
    with pytest.raises(Unusable):
        properties.update(space, b"f", {"{u:}b": b"1"})


def test_the_info_of_the_trash(registry, record, space, damage):
    key = next(item.key for item in trash.items(space) if item.name == b"gone")
    info = inside(record, f"trash/info/{key}.trashinfo")
    damage(info)
    items = {item.key: item for item in trash.items(space)}
    assert items[key].path == key.encode() and len(items) == 2
    checked(space)
    trash.sweep_info(space)
    if not info.is_dir():
        assert trash.restore(space, key) == key.encode()
        assert tree.lookup(space, key.encode()).size == 5
        operations.delete(space, key.encode())


@pytest.mark.parametrize(
    "row", ["[1]", "[null,null,null,null,null,null,null,null]", '"lock"', "[[],{},1,1,1,1,1,1]"]
)
def test_locks_of_another_host_that_are_none(record, space, row, allow_log):
    allow_log("locks and uploads of its last host are not usable")
    LockTable(space).acquire(b"f", principal="me")
    at = inside(record, "lease")
    at.mkdir(exist_ok=True)
    (at / "state-0000000000000007").write_text('{"lock": [' + row + '], "upload": []}')
    (at / "state-zzzzzzzzzzzzzzzz").write_text("")
    fd = os.open(at, os.O_RDONLY)
    try:
        handover.take_in(space, fd, 7)
        handover.clear(fd, 9)
    finally:
        os.close(fd)
    assert LockTable(space).drop(b"f") == 1, "what this host knows stays"
    assert [path.name for path in at.iterdir()] == ["state-zzzzzzzzzzzzzzzz"]


def test_marks_do_not_stumble_over_others_files(record, space):
    inside(record, "meta/" + "z" * 32 + ".json").write_bytes(b"")
    assert list(marks.marked(space, b"", lambda values: "{u:}small" in values)) == [b"f"]


INFO = [
    ("Path=/home/ann/a%20b", b"home/ann/a b"),
    ("Path=a\nPath=b", b"a"),
    ("Path = a ", b"a"),
    ("Path=a%00b", None),
    ("Path=../../etc/passwd", None),
    ("Path=a/../../b", None),
    ("Path=.", None),
    ("Path=", None),
    ("Path=" + "a/" * 3000, None),
    ("Path=%ff%FE", b"\xff\xfe"),
    ("Path=%zz", b"%zz"),
    ("Path=a\r\nX-Fsd-Id=</d:href><x/>", b"a"),
    ("Path=a\nX-Fsd-Size=nan", b"a"),
    ("Path=a\nX-Fsd-Size=inf\nX-Fsd-Deleted=-inf", b"a"),
    ("Path=a\nX-Fsd-Size=-5\nX-Fsd-Deleted=nan", b"a"),
    ("Path=a\nX-Fsd-Size=1e300\nX-Fsd-Deleted=1e300", b"a"),
    ("Path=a\nDeletionDate=9999-99-99", b"a"),
    ("Path=a\nDeletionDate=0001-01-01T00:00:00", b"a"),
]


@pytest.mark.parametrize(("text", "path"), INFO)
def test_infos_that_others_wrote(record, space, text, path):
    inside(record, "trash/files/theirs").mkdir()
    inside(record, "trash/info/theirs.trashinfo").write_text("[Trash Info]\n" + text + "\n")
    item = next(item for item in trash.items(space) if item.key == "theirs")
    assert item.path == (b"theirs" if path is None else path)
    assert 0 <= item.deleted < 1 << 62 and 0 <= item.size < 1 << 62 and item.node_id is None


def test_the_date_that_gio_writes_is_taken(record, space):
    """`gio trash` knows no field of ours."""
    inside(record, "trash/files/theirs").write_bytes(b"1")
    date = "Path=a\nDeletionDate=2020-05-04T03:02:01\n"
    inside(record, "trash/info/theirs.trashinfo").write_text("[Trash Info]\n" + date)
    item = trash.get(space, "theirs")
    assert 1588560000 < item.deleted < 1588650000
    assert trash.purge(space, 86400) == 1


@pytest.mark.parametrize(
    "name", ["f" * 16, "7" * 16, "-000000000000001", "0x00000000000001", " " * 16, "1_1_1_1_1_1_1_11"]
)
def test_infos_without_files(record, space, name):
    info = inside(record, f"trash/info/{name}.trashinfo")
    info.write_text("[Trash Info]\nPath=x\n")
    trash.sweep_info(space)
    operations.replay(space)
    checked(space)
    assert len(trash.items(space)) == 2


def test_a_key_of_the_longest_name(record, space):
    long = "n" * 255
    inside(record, f"trash/files/{long}").write_bytes(b"1")
    assert trash.get(space, long).path == long.encode()
    assert trash.restore(space, long) == long.encode()
    operations.delete(space, long.encode())


def mutated() -> st.SearchStrategy[Callable[[bytes], bytes]]:
    def mutate(change: tuple[str, float, bytes]) -> Callable[[bytes], bytes]:
        kind, where, what = change

        def do(sound: bytes) -> bytes:
            at = int(where * len(sound))
            if kind == "cut":
                return sound[:at]
            if kind == "insert":
                return sound[:at] + what + sound[at:]
            return sound[:at] + what + sound[at + len(what) :]

        return do

    kinds = st.sampled_from(["cut", "insert", "replace"])
    text = st.one_of(
        st.binary(max_size=9), st.sampled_from([b"null", b"[", b"1e999", b'"', b"\\ud800", b"-1"])
    )
    return st.tuples(kinds, st.floats(0, 1), text).map(mutate)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(change=mutated())
def test_bytes_that_turned(registry, record, space, change):
    ann = registry.accounts.get("ann")
    node_id = tree.lookup(space, b"f").id
    key = trash.items(space)[0].key
    for path in ("space.json", "acl.json", f"meta/{node_id}.json", f"trash/info/{key}.trashinfo"):
        file = inside(record, path)
        sound = file.read_bytes()
        file.write_bytes(change(sound))
        same = file.read_bytes() == sound
        try:
            roots.read_identity(record.path, registry.installation.key)
        except FsdError as error:
            assert len(str(error)) < 400
        if path == "acl.json":
            assert registry.grants.verify(record) is None or not same
        properties.get_all(space, b"f")
        assert len(trash.items(space)) == 2
        assert Registry(registry.state_dir).grants.role_of(record, ann) is Role.VIEWER
        file.write_bytes(sound)
    assert registry.grants.verify(record) is None


def test_limits(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        (tmp_path / "f").write_bytes(b"12345")
        assert read(fd, "f", 5) == b"12345"
        with pytest.raises(Unusable, match="'f' is larger than the 4 bytes"):
            read(fd, b"f", 4)
        with pytest.raises(FileNotFoundError):
            read(fd, "none", 5)
    finally:
        os.close(fd)
    assert parse(b'{"a": 1}') == {"a": 1}
    for wrong in (b"", b"[", b"[]", b"[" * 100_000, b"\xff", b"1"):
        with pytest.raises(ValueError, match="."):
            parse(wrong)
