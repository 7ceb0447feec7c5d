"""Every documented event and shape of message, and the traps among them: which hints come of it."""

from __future__ import annotations

import json

import pytest

from watcher.hint import Hint, Kind
from watcher.sources import gpfs_audit, gpfs_watch
from watcher.sources.cephfs import CephDecoder
from watcher.streams import peers
from watcher.streams.gather import Gatherer
from watcher.streams.heard import Decoder
from watcher.streams.places import Foreign, Places, parse_mapping

ENTRY, TREE, NOTHING = "entry", "tree", "nothing"


def gatherer(decode: Decoder, mapping: str = "/fs=/srv") -> Gatherer:
    """With one space, `s`, at /srv/users."""
    places = Places(parse_mapping([mapping]))
    places.add("s", b"/srv/users", b"", frozenset())
    return Gatherer(decode, places)


def said(hints: list[Hint]) -> set[tuple[str, bytes, bytes]]:
    """(kind, directory, name) of each hint."""
    found = set()
    for hint in hints:
        found |= {(hint.kind.value, hint.dir, name) for name in hint.names or {b""}}
    return found


def watch(event: str, path: str = "/fs/users/d/f", **more: object) -> bytes:
    """A watch folder's message, with the fields that are always there."""
    return json.dumps(
        {"WF_JSON": "0.0.2", "wd": "1", "cookie": "0", "event": event, "path": path, "inode": "7", **more}
    ).encode()


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ("IN_ACCESS", NOTHING), ("IN_OPEN", NOTHING), ("IN_CLOSE_NOWRITE", NOTHING), ("IN_IGNORED", NOTHING),
        ("IN_ATTRIB", ENTRY), ("IN_CLOSE_WRITE", ENTRY), ("IN_CREATE", ENTRY), ("IN_DELETE", ENTRY),
        ("IN_MODIFY", ENTRY), ("IN_MOVED_FROM", ENTRY), ("IN_MOVE_FROM", ENTRY), ("IN_MOVED_TO", ENTRY),
        ("IN_MOVE_TO", ENTRY), ("IN_DELETE_SELF", TREE), ("IN_MOVE_SELF", TREE), ("IN_UNMOUNT", TREE),
        ("IN_CREATE IN_ISDIR", TREE), ("IN_MOVED_TO|IN_ISDIR", TREE), ("IN_ISDIR,IN_DELETE", ENTRY),
        ("IN_MOVED_FROM IN_ISDIR", ENTRY),
    ],
)  # fmt: skip
def test_watch_folder_events(event: str, what: str) -> None:
    """Each documented event, alone and beside IN_ISDIR."""
    heard = gatherer(gpfs_watch.decode)
    assert heard.hear(watch(event, bytesWritten="0")) is None
    wanted: dict[str, set[tuple[str, bytes, bytes]]] = {
        NOTHING: set(),
        ENTRY: {("entries", b"d", b"f")},
        TREE: {("entries", b"d", b"f"), ("subtree", b"d/f", b"")},
    }
    hints = heard.take(1.0)
    assert said(hints) == wanted[what]
    assert [hint.soft for hint in hints] == [event == "IN_MODIFY"] * len(hints)


def test_watch_folder_masks_and_unknown_events() -> None:
    """Without a name the mask counts, with inotify's numbers; what is unknown is said, and looked at."""
    heard = gatherer(gpfs_watch.decode)
    for mask in ("0x40000080", "40000080", 0x40000080):
        raw = json.dumps({"path": "/fs/users/d/f", "mask": mask}).encode()
        assert heard.hear(raw) is None
        assert ("subtree", b"d/f", b"") in said(heard.take(1.0))
    rejected = heard.hear(watch("IN_TELEPORTED"))
    assert rejected is not None
    assert rejected.kind == "unfamiliar"
    assert "IN_TELEPORTED" in rejected.reason
    assert said(heard.take(1.0)) == {("entries", b"d", b"f")}


@pytest.mark.parametrize(
    ("message", "hints"),
    [
        ({"mask": 4, "path": "/users/d/f"}, {("entries", b"d", b"f")}),
        ({"mask": 16 | 2048, "path": "/users/d/f"}, {("entries", b"d", b"f")}),
        ({"mask": 2048 | 128 | 1, "path": "/users/d/f"}, {("entries", b"d", b"f")}),
        ({"mask": 16 | 65536, "path": "/users/d"}, {("entries", b"", b"d"), ("subtree", b"d", b"")}),
        ({"mask": 32 | 65536, "path": "/users/d"}, {("entries", b"", b"d")}),
        ({"mask": 2048, "path": "/users/d/f"}, set()),
        ({"mask": 1 | 8, "path": "/users/d/f"}, set()),
        (
            {"src_mask": 512, "dest_mask": 1024, "src_path": "/users/a/x", "dest_path": "/users/b/y"},
            {("entries", b"a", b"x"), ("entries", b"b", b"y"), ("subtree", b"b/y", b"")},
        ),
        (
            {"mask": 256 | 65536, "src_path": "/users/a/x", "dest_path": "/users/b/y"},
            {("entries", b"a", b"x"), ("entries", b"b", b"y"), ("subtree", b"b/y", b"")},
        ),
        (
            {"mask": 0, "path": "", "src_mask": 0, "dest_mask": 1024, "src_path": "", "dest_path": "/users/b/y"},
            {("entries", b"b", b"y"), ("subtree", b"b/y", b"")},
        ),
        (
            {"target_mask": 2, "link_mask": 16, "target_path": "/users/a/x", "link_path": "/users/l"},
            {("entries", b"a", b"x"), ("entries", b"", b"l")},
        ),
        ({"mask": 65536 | 16, "path": "/users", "snapshot_name": "s1"}, set()),
        ({"mask": 65536 | 32, "path": "/users/d", "snapshot_name": "s1"}, set()),
    ],
)  # fmt: skip
def test_cephfs_shapes(message: dict[str, object], hints: set[tuple[str, bytes, bytes]]) -> None:
    """Each of the five shapes, in both dialects."""
    envelope = {"timestamp": "2026-11-21 02:00:00.123456789Z", "mds_id": 0, "session_id": "u", "seq_id": 17}
    heard = gatherer(CephDecoder(), "/=/srv")
    assert heard.hear(json.dumps({**envelope, **message}).encode()) is None
    assert said(heard.take(1.0)) == hints
    bare = {key: value.lstrip("/") if isinstance(value, str) else value for key, value in message.items()}
    heard = gatherer(CephDecoder(), "=/srv")
    assert heard.hear(json.dumps(bare).encode()) is None
    assert said(heard.take(1.0)) == hints


def test_cephfs_tables() -> None:
    """The two tables give one number different meanings; an unknown bit is said and the path is looked at."""
    delete_or_open = json.dumps({"mask": 0x20, "path": "/users/d/f"}).encode()
    for table, hints in (("ceph", {("entries", b"d", b"f")}), ("inotify", set[tuple[str, bytes, bytes]]())):
        heard = gatherer(CephDecoder(table), "/=/srv")  # type: ignore[arg-type]
        assert heard.hear(delete_or_open) is None
        assert said(heard.take(1.0)) == hints
    heard = gatherer(CephDecoder(), "/=/srv")
    rejected = heard.hear(json.dumps({"mask": 0x100000, "path": "/users/d/f"}).encode())
    assert rejected is not None
    assert rejected.reason == "bits 0x100000"
    assert said(heard.take(1.0)) == {("entries", b"d", b"f")}


def test_cephfs_sequence_numbers() -> None:
    """Counted for each session; an old one that comes again is no jump."""
    decode = CephDecoder()
    for session, seq in (("a", 1), ("a", 2), ("b", 9), ("a", 5), ("a", 3), ("b", 10), ("a", 6)):
        decode({"mds_id": 0, "session_id": session, "seq_id": seq, "mask": 4, "path": "/x"})
    assert decode.jumps == 2


@pytest.mark.parametrize(
    ("event", "what"),
    [
        ("OPEN", NOTHING), ("ACCESS_DENIED", NOTHING), ("CLOSE", ENTRY), ("CLOSEWRITE", ENTRY), ("UNLINK", ENTRY),
        ("DESTROY", ENTRY), ("RMDIR", ENTRY), ("XATTRCHANGE", ENTRY), ("ACLCHANGE", ENTRY),
        ("GPFSATTRCHANGE", ENTRY), ("CREATE", TREE),
    ],
)  # fmt: skip
def test_audit_events(event: str, what: str) -> None:
    """Each documented event."""
    heard = gatherer(gpfs_audit.decode)
    record = {"LWE_JSON": "0.0.5", "path": "/fs/users/d/f", "oldPath": None, "event": event, "acls": None}
    assert heard.hear(json.dumps(record).encode()) is None
    tree = {("subtree", b"d/f", b"")} if what == TREE else set()
    assert said(heard.take(1.0)) == ({("entries", b"d", b"f")} | tree if what != NOTHING else set())


def test_audit_renames_and_modes() -> None:
    """A rename is for both ends; the mode says what is no directory."""
    heard = gatherer(gpfs_audit.decode)
    record = {
        "event": "RENAME",
        "path": "/fs/users/b/y",
        "oldPath": "/fs/users/a/x",
        "permissions": "200100600",
    }
    heard.hear(json.dumps(record).encode())
    assert said(heard.take(1.0)) == {("entries", b"a", b"x"), ("entries", b"b", b"y")}
    heard.hear(json.dumps({**record, "permissions": "200040700"}).encode())
    assert ("subtree", b"b/y", b"") in said(heard.take(1.0))


@pytest.mark.parametrize(
    "raw",
    [
        None, b"", b"{", b"[]", b'"text"', b"\xff\xfe", b'{"event": "IN_CREATE"}', b'{"path": "/fs/users/x"}',
        b'{"path": 7, "event": "IN_CREATE"}', b'{"path": "/fs/users/x\\u0000y", "event": "IN_CREATE"}',
        b'{"path": "/fs/users/x", "mask": "much"}', b'{"path": "/fs/users/\\ud800", "event": "IN_CREATE"}',
        b"[" * 100_000,
    ],
    ids=range(13),
)  # fmt: skip
def test_malformed(raw: bytes | None) -> None:
    """Said, and no hint."""
    heard = gatherer(gpfs_watch.decode)
    rejected = heard.hear(raw)
    assert rejected is not None
    assert rejected.kind == "malformed"
    assert heard.take(1.0) == []


def test_names_are_bytes() -> None:
    """Raw bytes that are no UTF-8, lone surrogates for them, and what a producer has replaced."""
    heard = gatherer(gpfs_watch.decode)
    assert heard.hear(b'{"path": "/fs/users/d/a\xffb", "event": "IN_CREATE"}') is None
    assert heard.hear(b'{"path": "/fs/users/d/a\\udcfec", "event": "IN_CREATE"}') is None
    assert said(heard.take(1.0)) == {("entries", b"d", b"a\xffb"), ("entries", b"d", b"a\xfec")}
    heard.hear(watch("IN_CREATE", "/fs/users/d/\N{REPLACEMENT CHARACTER}/f"))
    assert said(heard.take(1.0)) == {("subtree", b"d", b"")}


def test_where_paths_lead() -> None:
    """Prefixes, the hidden directory, other places, and roots of spaces that were moved as a whole."""
    heard = gatherer(gpfs_watch.decode)
    rejected = heard.hear(watch("IN_CREATE", "/other/users/f"))
    assert rejected is not None
    assert rejected.kind == "foreign"
    assert heard.hear(watch("IN_CREATE", "/fs/elsewhere/f")) is None
    for path in ("/fs/users/.fsd/staging/f", "/fs/users/.fsd/f"):
        assert heard.hear(watch("IN_CREATE", path)) is None
    assert heard.take(1.0) == []
    heard.hear(watch("IN_CREATE", "//fs/./users//d/f"))
    assert said(heard.take(1.0)) == {("entries", b"d", b"f")}
    heard.hear(watch("IN_MOVED_TO IN_ISDIR", "/fs/users"))
    assert [hint.kind for hint in heard.take(1.0)][0] is Kind.GAP
    heard.hear(watch("IN_ATTRIB", "/fs"))
    assert heard.take(1.0) == []


def test_mapping() -> None:
    """The longest prefix counts; `/` and nothing are different; what is wrong is said."""
    places = Places(parse_mapping(["/=/mnt", "/gpfs/fs1=/srv/a", "=/mnt/rel", "/gpfs/odd=name=/srv/b"]))
    assert places.local(b"/gpfs/fs1/x") == b"/srv/a/x"
    assert places.local(b"/gpfs/fs1") == b"/srv/a"
    assert places.local(b"/gpfs/fs10") == b"/mnt/gpfs/fs10"
    assert places.local(b"/gpfs/odd=name/x") == b"/srv/b/x"
    assert places.local(b"/x/") == b"/mnt/x"
    assert places.local(b"x/y") == b"/mnt/rel/x/y"
    with pytest.raises(Foreign, match=r"'\.\.'"):
        places.local(b"/gpfs/fs1/../x")
    with pytest.raises(ValueError, match="no mapping"):
        parse_mapping(["/gpfs"])


def test_filesystems_inside_a_space() -> None:
    """A part of a space has its own root; what others hear is left out."""
    places = Places(parse_mapping(["/fs=/srv"]))
    places.add("s", b"/srv/users", b"", frozenset({b"/srv/users/local"}))
    places.add("s", b"/srv/users/in", b"in", frozenset())
    assert places.directory("/fs/users/in/d") == ("s", b"in/d")
    assert places.directory("/fs/users/local/d") is None
    places.remove("s")
    assert places.spaces() == set()
    assert places.directory("/fs/users/in/d") is None


def test_what_hosts_tell_each_other() -> None:
    """A round trip of any name; the own host's words and other spaces' mean nothing."""
    names = [b"f", b"d/\xff\n\xc3\xa9", b"d/" + b"x" * 255]
    sent = list(peers.messages("one", "ab12", 7, names))
    heard = Gatherer(peers.JournalDecoder("two"), Places(parse_mapping(["/=/"])))
    heard._places.add("ab12", b"/ab12", b"", frozenset())
    assert all(heard.hear(message) is None for message in sent)
    assert said(heard.take(0.0)) == {
        ("entries", b"", b"f"),
        *(("entries", b"d", name[2:]) for name in names[1:]),
    }
    assert heard.hear(next(peers.messages("two", "ab12", 7, names))) is None and heard.take(0.0) == []
    assert heard.hear(next(peers.messages("one", "cd34", 7, names))) is None and heard.take(0.0) == []
    assert heard.hear(peers.gap("one", "ab12", 9)) is None
    assert [(hint.space, hint.kind) for hint in heard.take(0.0) if hint.kind is not Kind.ENTRIES] == [
        ("ab12", Kind.GAP)
    ]


def test_what_hosts_tell_fits_into_a_message() -> None:
    """Brokers take a megabyte."""
    paths = [b"\xff" * 200 + b"/%d" % number for number in range(5000)]
    sent = list(peers.messages("one", "ab12", 7, paths))
    assert max(map(len, sent)) < 1_000_000
    assert sum(len(json.loads(message)["paths"]) for message in sent) == len(paths)


@pytest.mark.parametrize(
    "more",
    [
        {"fsd": 2},
        {"space": "a/b"},
        {"space": ".."},
        {"space": ""},
        {"paths": "f"},
        {"paths": [1]},
        {"host": 1},
    ],
)
def test_what_no_host_would_tell(more: dict[str, object]) -> None:
    """Refused, not guessed."""
    message = {"fsd": 1, "host": "one", "space": "ab12", "number": 1, "paths": ["f"], **more}
    rejected = gatherer(peers.JournalDecoder("two"), "/=/").hear(json.dumps(message).encode())
    assert rejected is not None and rejected.kind == "malformed"
