"""Live properties: one table from name to the function that writes its value.

A function returns the inner XML, escaped, "" for an empty element, or None where the resource does not have
it.  Everything comes from the Entry of the listing: no further system call an entry.
"""

import math
import mimetypes
import os
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import quote
from xml.sax.saxutils import escape

from lxml import etree

from dav.http.dates import NANO, http_date, iso_date
from dav.http.errors import HttpError
from dav.routes import Place
from dav.webdav.xml import DAV, OC, parse
from fsd.core import hashing, marks, quota, synced, tree
from fsd.core import properties as dead
from fsd.core.copying import list_attributes
from fsd.core.errors import FsdError
from fsd.core.labels import ID_ATTRIBUTE, PROPERTY_PREFIX
from fsd.core.locks import Lock, LockTable
from fsd.core.names import split, to_text
from fsd.core.sums import EMPTY, Sum
from fsd.core.tree import Entry

ROOT_PERMISSIONS = "RCK"
"""A space's root takes files and folders, but is not deleted, renamed or moved over WebDAV."""
DEFAULT_TYPE = "application/octet-stream"
DIRECTORY_TYPE = "httpd/unix-directory"


_FILE_COST = 64 << 10
"""What reading a file costs at least, in bytes."""


def permissions(entry: Entry) -> str:
    """The letters of an entry for somebody who may write."""
    if entry.kind == "d":
        return "RDNVCK" if entry.path else ROOT_PERMISSIONS
    return "RDNVW" if entry.kind == "f" else "RDNV"


class Scope:
    """What all entries of one answer share; costly parts are made when first asked."""

    def __init__(self, place: Place, user_id: str, read_for_sums: int = 0) -> None:
        """`read_for_sums`: how many bytes may be read at once for checksums that nobody knows yet."""
        self._user_id = user_id
        self._dead: tuple[bytes, dict[str, bytes]] | None = None
        self.place = place
        self.id_prefix = place.record.id + "!"
        self._writable = place.writable
        self._fd: int | None = None
        self._any_lock: bool | None = None
        self._available: int | None = None
        self._fingerprint: str | None = None
        self._sums: dict[str, Sum] = {}
        self._read_for_sums = read_for_sums

    def permissions(self, entry: Entry) -> str:
        """Letters of clients.md: empty of all that writes where the user may only look."""
        return permissions(entry) if self._writable else ""

    def available(self) -> int:
        """Bytes that may still be written: by the quota, without one by the disk."""
        if self._available is None:
            found = quota.available(self.place.space)
            self._available = quota.free_on_disk(self.place.space) if found is None else found
        return self._available

    def fingerprint(self) -> str:
        if self._fingerprint is None:
            self._fingerprint = tree.data_fingerprint(self.place.space)
        return self._fingerprint

    def locked(self) -> bool:
        """Whether anything in the space may be locked."""
        if self._any_lock is None:
            self._any_lock = LockTable(self.place.space).any()
        return self._any_lock

    def locks(self, path: bytes) -> list[Lock]:
        return LockTable(self.place.space).covering(path) if self.locked() else []

    def find_sums(self, entries: Iterable[Entry]) -> None:
        """Ask for the checksums of all these at once; those that are not known are computed, now or soon."""
        files = [entry for entry in entries if entry.kind == "f" and entry.size]
        space = self.place.space
        self._sums |= space.sums.known(entry.etag for entry in files)
        with hashing.Beside(space) as beside:
            for entry in files:
                if entry.etag in self._sums or entry.writing or entry.unreadable:
                    continue
                cost = max(entry.size, _FILE_COST)
                if cost > self._read_for_sums:
                    hashing.soon(space, entry)
                    continue
                self._read_for_sums -= cost
                try:
                    found, value = hashing.of_entry(space, entry, beside)
                except (FsdError, OSError):
                    continue  # being written, replaced or unreadable: the listing stands
                self._sums[found.etag] = value

    def checksums(self, entry: Entry) -> str | None:
        """Those of a file, as far as ``find_sums`` found them."""
        if entry.kind != "f":
            return None
        value = self._sums.get(entry.etag) if entry.size else EMPTY
        return f"<oc:checksum>{value.text}</oc:checksum>" if value is not None else None

    def final(self, entry: Entry) -> bool:
        """Whether there is no more to be known of its checksums."""
        return entry.kind != "f" or not entry.size or entry.etag in self._sums

    def dead(self, entry: Entry) -> dict[str, bytes]:
        """Dead properties, each as one element; {} for what cannot have any or cannot be read."""
        found = {}
        for name, value in self._properties(entry).items():
            if not name.startswith(marks.PRIVATE) and (shown := _as_element(name, value)) is not None:
                found[name] = shown
        return found

    def favorite(self, entry: Entry) -> str:
        """Whether it is a favourite of the user, "1" or "0"."""
        return "1" if marks.is_favorite(self._properties(entry), self._user_id) else "0"

    def sync_token(self) -> str | None:
        """The token that stands for now, in the whole space."""
        return synced.token(self.place.space)

    def _properties(self, entry: Entry) -> dict[str, bytes]:
        if self._dead is None or self._dead[0] != entry.path:
            self._dead = entry.path, self._read_properties(entry)
        return self._dead[1]

    def _read_properties(self, entry: Entry) -> dict[str, bytes]:
        if entry.kind not in "fd" or entry.unreadable:
            return {}
        try:
            if self._has_none(entry):
                return {}
            return dead.get_all(self.place.space, entry.path, entry.id)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            # Replaced or deleted since it was listed: the listing stands, it must not become a 404.
            return {}

    def _has_none(self, entry: Entry) -> bool:
        """Whether one listxattr(2) below the listed directory says that there are no dead properties."""
        parent, name = split(entry.path)
        if not entry.path or parent != self.place.path:
            return False
        if self._fd is None:
            self._fd = self.place.space.open_dir(parent)
        names = list_attributes(b"/proc/self/fd/%d/%s" % (self._fd, name))
        # Without the label it may be a filesystem without attributes, where they are kept elsewhere.
        return ID_ATTRIBUTE in names and not any(text.startswith(PROPERTY_PREFIX) for text in names)

    def close(self) -> None:
        """Close the directory that look-ups of dead properties used."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


@lru_cache(maxsize=4096)
def _as_element(name: str, value: bytes) -> bytes | None:
    """The element of a dead property; None if its name is none for XML.

    Whoever may write a file may write its attributes: what isn't the element that it is named is shown as text.
    """
    try:
        root = parse(value)
        if root.tag == name:
            return etree.tostring(root, encoding="utf-8", xml_declaration=False)
    except HttpError:
        pass
    try:
        made = etree.Element(name)
        made.text = to_text(value)
        return etree.tostring(made, encoding="utf-8", xml_declaration=False)
    except ValueError:
        return None


Getter = Callable[[Scope, Entry], str | None]


@lru_cache(maxsize=4096)
def _type_of(suffix: str) -> str:
    return mimetypes.guess_type("x" + suffix)[0] or DEFAULT_TYPE


def content_type(name: bytes) -> str:
    """The media type by the name's suffix."""
    return _type_of(os.path.splitext(to_text(name))[1].lower())


def active_lock(lock: Lock, root: str) -> str:
    """One ``activelock`` element; ``root`` is the URL path of what was locked, the timeout what is left of it."""
    left = max(1, math.ceil(lock.expires - time.time()))
    scope = "exclusive" if lock.exclusive else "shared"
    depth = "infinity" if lock.infinite else "0"
    owner = lock.owner.decode("utf-8", "replace")
    return (
        f"<d:activelock><d:locktype><d:write/></d:locktype><d:lockscope><d:{scope}/></d:lockscope>"
        f"<d:depth>{depth}</d:depth>{owner}<d:timeout>Second-{min(left, lock.timeout)}</d:timeout>"
        f"<d:locktoken><d:href>{escape(lock.token)}</d:href></d:locktoken>"
        f"<d:lockroot><d:href>{escape(root)}</d:href></d:lockroot></d:activelock>"
    )


def _lock_discovery(scope: Scope, entry: Entry) -> str:
    return "".join(active_lock(lock, scope.place.href_of(lock.path)) for lock in scope.locks(entry.path))


_LOCK_ENTRY = (
    "<d:lockentry><d:lockscope><d:{}/></d:lockscope><d:locktype><d:write/></d:locktype></d:lockentry>"
)
_SUPPORTED_LOCK = _LOCK_ENTRY.format("exclusive") + _LOCK_ENTRY.format("shared")


_REPORTS = "".join(
    f"<d:supported-report><d:report><{name}/></d:report></d:supported-report>"
    for name in ("d:sync-collection", "oc:filter-files", "oc:search-files")
)


def _display_name(scope: Scope, entry: Entry) -> str:
    return escape(to_text(split(entry.path)[1]) if entry.path else scope.place.record.name)


def _id(scope: Scope, entry: Entry) -> str:
    return scope.id_prefix + entry.id


LIVE: dict[str, Getter] = {
    f"{DAV}resourcetype": lambda scope, entry: "<d:collection/>" if entry.kind == "d" else "",
    f"{DAV}getlastmodified": lambda scope, entry: http_date(entry.mtime_ns // NANO),
    f"{DAV}getetag": lambda scope, entry: f'"{entry.etag}"',
    f"{DAV}getcontentlength": lambda scope, entry: str(entry.size) if entry.kind != "d" else None,
    f"{DAV}getcontenttype": lambda scope, entry: content_type(entry.name) if entry.kind != "d" else None,
    f"{DAV}creationdate": lambda scope, entry: iso_date(min(entry.mtime_ns, entry.ctime_ns) // NANO),
    f"{DAV}displayname": _display_name,
    f"{DAV}supportedlock": lambda scope, entry: _SUPPORTED_LOCK,
    f"{DAV}lockdiscovery": _lock_discovery,
    f"{DAV}quota-used-bytes": lambda scope, entry: str(entry.size) if entry.kind == "d" else None,
    f"{DAV}quota-available-bytes": lambda scope, entry: str(scope.available()) if entry.kind == "d" else None,
    f"{OC}id": _id,
    f"{OC}fileid": _id,
    f"{OC}permissions": lambda scope, entry: scope.permissions(entry),
    f"{OC}size": lambda scope, entry: str(entry.size),
    f"{OC}checksums": lambda scope, entry: scope.checksums(entry),
    f"{OC}favorite": lambda scope, entry: scope.favorite(entry),
    f"{DAV}sync-token": lambda scope, entry: scope.sync_token() if entry.kind == "d" else None,
    f"{DAV}supported-report-set": lambda scope, entry: _REPORTS if entry.kind == "d" else None,
    f"{OC}data-fingerprint": lambda scope, entry: escape(scope.fingerprint()) if entry.kind == "d" else None,
}
ABSENT: frozenset[str] = frozenset(
    {
        *(f"{OC}{name}" for name in ("downloadURL", "dDC", "share-types", "privatelink")),
        *(f"{OC}{name}" for name in ("owner-id", "owner-display-name", "public-link-permission")),
        f"{DAV}getcontentlanguage",
        f"{DAV}current-user-principal",
    }
)
"""Known names that nothing here has: asking for them costs no look-up of dead properties."""

_ONLY_IF_NAMED = ("quota", "fingerprint", "checksums", "favorite", "sync-token", "report-set")
ALLPROP: tuple[str, ...] = tuple(name for name in LIVE if not any(part in name for part in _ONLY_IF_NAMED))
"""RFC 4331 keeps quota properties out of allprop, since they may be costly; checksums may be, too."""

IGNORED_WRITES: frozenset[str] = frozenset(
    {
        "{urn:schemas-microsoft-com:}Win32CreationTime",
        "{urn:schemas-microsoft-com:}Win32LastAccessTime",
        "{urn:schemas-microsoft-com:}Win32FileAttributes",
        f"{OC}checksums",
    }
)
"""Accepted and not kept: refusing them makes Windows and rclone give up what they were doing."""

MTIME_WRITES: frozenset[str] = frozenset(
    {
        f"{DAV}getlastmodified",
        f"{DAV}lastmodified",
        "{urn:schemas-microsoft-com:}Win32LastModifiedTime",
    }
)


def disposition(name: bytes) -> str:
    """Content-Disposition that saves the file under its name (RFC 6266)."""
    return f"attachment; filename*=UTF-8''{quote(to_text(name), safe='')}"
