"""One installation: its state directory, registry database, storage id and service key.

Everything the registry, the accounts and the grants keep is in `fsd.db` (synchronous=FULL): what a command reported
as done survives a power cut. Each change raises `generation`, so other processes notice with one indexed read.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fsd.core.errors import FsdError
from fsd.core.store import Database

SCHEMA = """
CREATE TABLE IF NOT EXISTS settings (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS users (
    id TEXT PRIMARY KEY,               -- random, never used again: a new user of an old name inherits nothing
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE,       -- names differ in more than case
    display_name TEXT NOT NULL,
    email TEXT NOT NULL,
    role TEXT NOT NULL,
    password TEXT NOT NULL,            -- argon2id, encoded (empty: cannot log in)
    epoch INTEGER NOT NULL,            -- raised by whatever ends sessions and cached credentials
    disabled INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS groups (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    folded TEXT NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS membership (
    group_id TEXT NOT NULL REFERENCES groups(id),
    user_id TEXT NOT NULL REFERENCES users(id),
    PRIMARY KEY (group_id, user_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tokens (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    name TEXT NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,                   -- seconds since the epoch
    used INTEGER NOT NULL,
    digest BLOB NOT NULL UNIQUE,       -- SHA-256 of the token's text, which is not kept
    UNIQUE (user_id, name)
);
CREATE TABLE IF NOT EXISTS spaces (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    alias TEXT NOT NULL,
    type TEXT NOT NULL,
    path BLOB NOT NULL,                -- absolute (adopted), or relative to the data root
    owner_id TEXT,
    label TEXT NOT NULL,
    read_only INTEGER NOT NULL,
    state TEXT NOT NULL,
    uid INTEGER, gid INTEGER, file_mode INTEGER, dir_mode INTEGER,
    root_binding TEXT NOT NULL,
    created INTEGER NOT NULL,
    acl TEXT NOT NULL                  -- the acl.json in force, signed
);
"""
KEY_BYTES = 32


class _RegistryDatabase(Database):
    def __init__(self, state_dir: Path) -> None:
        super().__init__(
            state_dir / "fsd.db", SCHEMA, version=1, synchronous="FULL", lock=state_dir / "fsd.lock"
        )
        self._key_path = state_dir / "service.key"

    def created(self, db: sqlite3.Connection) -> None:
        """A new registry gets its storage id; a vanished one is an error, never an empty replacement."""
        if self._key_path.exists():
            raise FsdError(
                f"The registry {self.path} is gone although this state directory was set up: "
                "restore it from a backup, or remove service.key to start anew."
            )
        rows = [("storage", secrets.token_hex(4)), ("generation", "1"), ("epoch", "0")]
        db.executemany("INSERT INTO settings (key, value) VALUES (?, ?)", rows)

    def opened(self, db: sqlite3.Connection) -> None:
        """Tables that an earlier release did not have."""
        if db.execute("SELECT 1 FROM sqlite_master WHERE name='tokens'").fetchone() is None:
            for statement in SCHEMA.split(";"):
                if statement.strip():
                    db.execute(statement)


class Installation:
    """The state directory of one data root. Thread-safe; may be made before a fork and used after it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.db = _RegistryDatabase(state_dir)
        self._storage: str | None = None

    @classmethod
    def initialise(cls, state_dir: Path, data_root: Path) -> Installation:
        """Make or open the installation for `data_root`. Idempotent; a crash in between is finished by the next call.

        Raises FsdError when the state directory belongs to another data root that still exists.
        """
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (state_dir / "run").mkdir(exist_ok=True, mode=0o700)
        data_root.mkdir(parents=True, exist_ok=True)
        made = cls(state_dir)
        data = os.fsencode(data_root.resolve())
        known = made.setting("data_root")
        if known is None:
            made.set_setting("data_root", os.fsdecode(data))
        elif os.fsencode(known) != data:
            if os.path.isdir(known) and not os.path.samefile(known, data):
                raise FsdError(f"The state directory {state_dir} belongs to the data root {known}.")
            # The whole data root was moved: created spaces are kept relative to it and prove themselves by binding.
            made.set_setting("data_root", os.fsdecode(data))
        made.db.path.chmod(0o600)  # a crash may have come before SQLite's file got its mode
        with made.db.exclusive():
            _make_key(state_dir)
        return made

    @property
    def initialised(self) -> bool:
        """Whether `initialise` ran to its end here."""
        return (self.state_dir / "service.key").exists() and self.db.path.exists()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction on the registry that other processes will notice; not re-entrant."""
        with self.db.write() as db:
            yield db
            db.execute("UPDATE settings SET value = value + 1 WHERE key = 'generation'")

    def generation(self) -> int:
        """A number that is another one after any change to users, groups, spaces or grants, by any process."""
        answers = self.db.answers()
        found: int | None = answers.get("generation")
        if found is None:
            with self.db.read() as db:
                found = int(db.execute("SELECT value FROM settings WHERE key = 'generation'").fetchone()[0])
            answers["generation"] = found
        return found

    def setting(self, key: str) -> str | None:
        """A stored value, or None."""
        with self.db.read() as db:
            row = db.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set_setting(self, key: str, value: str) -> None:
        """Store a value durably."""
        with self.write() as db:
            db.execute("INSERT OR REPLACE INTO settings (key, value) VALUES (?, ?)", (key, value))

    @property
    def storage_id(self) -> str:
        """8 hexadecimal digits, one per installation: the first part of the ids of spaces made here."""
        if self._storage is None:
            self._storage = self.setting("storage") or ""
        return self._storage

    @property
    def data_root(self) -> bytes:
        """The absolute data root."""
        return os.fsencode(self.setting("data_root") or "")

    @property
    def key(self) -> bytes:
        """The service key: signs acl.json. Raises FsdError when it is missing or damaged."""
        return _read_key(self.state_dir)  # not kept: an import of another key must reach running processes

    def replace_key(self, key: bytes) -> None:
        """Put another service key in place, atomically; what was signed with the old one must be signed again."""
        if len(key) != KEY_BYTES:
            raise FsdError(f"A service key has {KEY_BYTES} bytes, this one {len(key)}.")
        write_file(self.state_dir, "service.key", key.hex().encode() + b"\n")

    def close(self) -> None:
        """Close the database; the next use opens it again."""
        self.db.close()


def next_epoch(db: sqlite3.Connection) -> int:
    """A number no user had before, so that a cached login of a deleted user never fits a new one."""
    db.execute("UPDATE settings SET value = value + 1 WHERE key = 'epoch'")
    return int(db.execute("SELECT value FROM settings WHERE key = 'epoch'").fetchone()[0])


def write_file(directory: Path | int, name: str, data: bytes) -> None:
    """Replace a small file atomically and durably: 0600, fsync, rename, fsync of the directory.

    Two writers at once would share the temporary name, hence the lock on it; a crash leaves at most the temporary.
    """
    dir_fd = (
        os.open(directory, os.O_RDONLY | os.O_DIRECTORY) if isinstance(directory, Path) else os.dup(directory)
    )
    try:
        fcntl.flock(dir_fd, fcntl.LOCK_EX)
        temporary = f".{name}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600, dir_fd=dir_fd), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)


def _make_key(state_dir: Path) -> None:
    if not (state_dir / "service.key").exists():
        write_file(state_dir, "service.key", secrets.token_hex(KEY_BYTES).encode() + b"\n")


def _read_key(state_dir: Path) -> bytes:
    path = state_dir / "service.key"
    try:
        key = bytes.fromhex(path.read_text("ascii").strip())
    except FileNotFoundError:
        raise FsdError(
            f"The service key {path} is missing: run 'fsd init', or 'fsd key import' a copy."
        ) from None
    except ValueError:
        key = b""
    except OSError as error:
        raise FsdError(
            f"The service key {path} cannot be read: {os.strerror(error.errno or errno.EIO)}."
        ) from error
    if len(key) != KEY_BYTES:
        raise FsdError(f"The service key {path} is damaged: 'fsd key import' a copy.")
    return key
