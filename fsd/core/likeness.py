"""Several hosts with one list of users, groups, tokens and spaces: each has a copy, and knows when it is another one.

The registry is a local database (SQLite's locks and shared memory are not for network filesystems). It is taken over
from another host whole, in one transaction, also under a running server. What hosts have in common is told by a digest,
which the one that works on a space writes into its lease; so whoever follows sees that its own copy is an old one.

What may differ is left out: when tokens were used, who is a member of a space (grants travel with the trees), and which
numbers come next.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fsd.core import lease
from fsd.core.errors import FsdError
from fsd.core.installation import Installation, next_epoch, write_file

if TYPE_CHECKING:
    from fsd.core.space import Space

FORMAT = 1
EVERY_S = 1.0
_TABLES = ("settings", "users", "groups", "membership", "tokens", "spaces")
_ALL_HOSTS = (
    "(key='storage' OR key GLOB 'source:*' OR key GLOB 'mount-trash:*' OR key GLOB 'direct-versions:*')"
)
"""Which settings are everybody's; the others (numbers, what a host saw of a filesystem, or began) are its own."""
_ALIKE = (
    f"SELECT key, value FROM settings WHERE {_ALL_HOSTS} ORDER BY key",
    "SELECT id, name, display_name, email, role, password, disabled FROM users ORDER BY id",
    "SELECT id, name FROM groups ORDER BY id",
    "SELECT group_id, user_id FROM membership ORDER BY group_id, user_id",
    "SELECT id, user_id, name, expires, digest FROM tokens WHERE expires IS NULL OR expires>:now ORDER BY id",
    "SELECT id, name, alias, type, path, owner_id, label, read_only, state, uid, gid, file_mode, dir_mode, root_binding"
    " FROM spaces ORDER BY id",
)
_DIGEST = "likeness"
_Rows = dict[str, list[dict[str, Any]]]


class Lost(NamedTuple):
    """What this host has and the copy has not, by their names."""

    users: list[str]
    spaces: list[str]


def digest(installation: Installation) -> str:
    """16 hexadecimal digits: the same on hosts with the same users, groups, tokens, spaces and service key.

    Computed again after a commit, for another key, and when a token has expired.
    """
    answers, key, now = installation.db.answers(), installation.key, int(time.time())
    known: tuple[bytes, float, str] | None = answers.get(_DIGEST)
    if known is not None and known[0] == key and now < known[1]:
        return known[2]
    running = hashlib.blake2b(key, digest_size=8, person=b"fsd alike")
    with installation.db.read() as db:
        for query in _ALIKE:
            for row in db.execute(query, {"now": now} if ":now" in query else ()):
                running.update(repr(row).encode("utf-8", "surrogateescape"))
            running.update(b"\0")
        (until,) = db.execute("SELECT min(expires) FROM tokens WHERE expires>?", (now,)).fetchone()
    found = running.hexdigest()
    answers[_DIGEST] = (key, float("inf") if until is None else until, found)
    return found


class Told:
    """The digest for the leases: asked for once a second at most; the last one that could be."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._until, self._last = 0.0, ""

    def __call__(self) -> str:
        now = time.monotonic()
        if now >= self._until:
            self._until = now + EVERY_S
            with suppress(OSError):
                self._last = digest(self._installation)
        return self._last


def differs(installation: Installation, space: Space) -> str | None:
    """A sentence, if the host that works on a shared space has other users, groups, tokens or spaces than this one."""
    found = lease.holder(space)
    if lease.host_of(space.state_dir) is None or found is None or found.released or not found.registry:
        return None
    if found.host == lease.host_id(space.state_dir) or found.registry == digest(installation):
        return None
    return (
        f"The users, groups, tokens or spaces of this host are not those of {found.name}: where they are right run"
        " 'fsd cluster export', and here 'fsd cluster join' with what it printed."
    )


def export(installation: Installation) -> str:
    """All that another host needs, as text: as secret as the service key, which is in it."""
    with tempfile.TemporaryDirectory(dir=installation.state_dir) as aside:
        path = Path(aside) / "fsd.db"
        copy = sqlite3.connect(path)
        try:
            with installation.db.read() as db:
                db.backup(copy)
            copy.execute("DELETE FROM settings WHERE key GLOB 'move:*'")  # this host ends what it has begun
            copy.commit()
            copy.execute("PRAGMA journal_mode=DELETE")
        finally:
            copy.close()
        data = base64.b64encode(path.read_bytes()).decode()
    return json.dumps({"fsd-cluster": FORMAT, "key": installation.key.hex(), "registry": data})


class Copy:
    """What `export` printed. Close it; FsdError if it is nothing of the kind."""

    def __init__(self, text: str) -> None:
        try:
            found = json.loads(text)
            if found["fsd-cluster"] != FORMAT:
                raise ValueError(found["fsd-cluster"])
            self.key = bytes.fromhex(found["key"])
            self.data = base64.b64decode(found["registry"], validate=True)
            self.rows = _read(self.data)
        except (ValueError, KeyError, TypeError, sqlite3.Error) as error:
            raise FsdError("This is not what 'fsd cluster export' of this release printed.") from error

    @property
    def storage(self) -> str:
        """Of which installation it is."""
        return next((row["value"] for row in self.rows["settings"] if row["key"] == "storage"), "")

    def found(self, state_dir: Path) -> None:
        """Make a state directory of it, where there is none yet. A crash in between leaves one without a key, which the
        next call makes whole."""
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state_dir / "run").mkdir(exist_ok=True, mode=0o700)
        for suffix in ("-wal", "-shm"):
            (state_dir / f"fsd.db{suffix}").unlink(missing_ok=True)
        write_file(state_dir, "fsd.db", self.data)
        write_file(state_dir, "service.key", self.key.hex().encode() + b"\n")

    def lost(self, installation: Installation) -> Lost:
        """What `replace` would take away."""
        with installation.db.read() as db:
            users = db.execute("SELECT id, name FROM users").fetchall()
            spaces = db.execute("SELECT id, name FROM spaces WHERE state!='deleted'").fetchall()
        have = [{row["id"] for row in self.rows[table]} for table in ("users", "spaces")]
        return Lost(
            [name for ident, name in users if ident not in have[0]],
            [name for ident, name in spaces if ident not in have[1]],
        )

    def replace(self, installation: Installation) -> None:
        """Take its place in an installation, in one transaction; running servers follow.

        FsdError if it is another installation's. Of the grants of a space the newer ones stay. Sessions and remembered
        logins end of each user whose password, role or state is another one now.
        """
        if self.storage != installation.storage_id:
            raise FsdError(
                "This is the copy of another installation; only one of the same can be taken over."
            )
        same_key = self.key == installation.key
        installation.replace_key(self.key)
        with installation.write() as db:
            kept = dict(db.execute(f"SELECT key, value FROM settings WHERE NOT {_ALL_HOSTS}").fetchall())
            users = {
                row[0]: row[1:] for row in db.execute("SELECT id, epoch, password, role, disabled FROM users")
            }
            acls = dict(db.execute("SELECT id, acl FROM spaces")) if same_key else {}
            epochs = [int(row["value"]) for row in self.rows["settings"] if row["key"] == "epoch"]
            epoch = max([int(kept["epoch"]), *epochs])
            for table in _TABLES:
                db.execute(f"DELETE FROM {table}")
                _insert(db, table, self.rows[table])
            db.execute(f"DELETE FROM settings WHERE NOT {_ALL_HOSTS}")
            db.executemany("INSERT INTO settings VALUES (?, ?)", kept.items())
            db.execute("UPDATE settings SET value=? WHERE key='epoch'", (str(epoch),))
            for row in self.rows["users"]:
                before, *old = users.get(row["id"], (None,))
                if before == row["epoch"] and old != [row[name] for name in ("password", "role", "disabled")]:
                    db.execute("UPDATE users SET epoch=? WHERE id=?", (next_epoch(db), row["id"]))
            for row in self.rows["spaces"]:
                if _number(acls.get(row["id"], "")) > _number(row["acl"]):
                    db.execute("UPDATE spaces SET acl=? WHERE id=?", (acls[row["id"]], row["id"]))


def _read(data: bytes) -> _Rows:
    """The rows of all tables of a database."""
    db = sqlite3.connect(":memory:")
    try:
        db.deserialize(data)
        db.row_factory = sqlite3.Row
        if db.execute("PRAGMA user_version").fetchone()[0] != 1:
            raise ValueError("another format")
        return {table: [dict(row) for row in db.execute(f"SELECT * FROM {table}")] for table in _TABLES}
    finally:
        db.close()


def _insert(db: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    known = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
    columns = [column for column in known if not rows or column in rows[0]]
    marks = ",".join("?" * len(columns))
    db.executemany(
        f"INSERT INTO {table} ({','.join(columns)}) VALUES ({marks})",
        [[row[column] for column in columns] for row in rows],
    )


def _number(acl: str) -> int:
    try:
        return int(json.loads(acl)["number"])
    except (ValueError, KeyError, TypeError):
        return -1
