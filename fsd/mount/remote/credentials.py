"""Who we are to a server: an app token or password from a file, the environment, what was saved, or asked for. Never
from the command line, which everybody on the machine can read."""

from __future__ import annotations

import base64
import getpass
import hashlib
import os
import stat
import sys
from pathlib import Path

from fsd.core.errors import USAGE, UserError

VARIABLE = "FSD_MOUNT_TOKEN"


def place_of(url: str, user: str) -> str:
    """A name for what belongs to one user of one server."""
    return hashlib.blake2b(f"{url.rstrip('/')}\0{user}".encode(), digest_size=8).hexdigest()


def state_home() -> Path:
    """Where caches and what waits in them lie: not below ~/.cache, which anybody may empty at any time."""
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "fsd" / "remote"


def _saved(url: str, user: str) -> Path:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return Path(home) / "fsd" / "remote" / f"{place_of(url, user)}.token"


def find(url: str, user: str, token_file: str | None, *, save: bool) -> str:
    """The value of the Authorization header. UserError where there is no secret."""
    secret = _from_file(Path(token_file)) if token_file else os.environ.get(VARIABLE, "")
    if not secret and _saved(url, user).exists():
        secret = _from_file(_saved(url, user))
    if not secret and sys.stdin.isatty():
        secret = getpass.getpass(f"Token or password for {user or 'the token'} at {url}: ")
    if not secret:
        raise UserError(f"No token: give --token-file FILE, or set {VARIABLE}.", USAGE)
    if not secret.isprintable() or not secret.isascii():
        raise UserError("The token has characters that no token has.")
    if save:
        _save(_saved(url, user), secret)
    if user:
        return "Basic " + base64.b64encode(f"{user}:{secret}".encode()).decode()
    return f"Bearer {secret}"


def _from_file(path: Path) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"The token's file {path} can't be read: {error.strerror}.") from None
    with open(fd, encoding="utf-8", errors="replace") as file:
        if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
            raise UserError(f"Others can read the token in {path}: 'chmod 600 {path}' first.")
        return file.readline().strip()


def _save(path: Path, secret: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        os.fchmod(fd, 0o600)
        file.write(secret + "\n")
    new.replace(path)
