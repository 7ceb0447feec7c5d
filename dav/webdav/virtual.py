"""Collections above the spaces: what the user sees there, never anything on disk."""

import hashlib
import logging
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from dav.http.dates import http_date
from dav.routes import Child, Virtual, root_entry
from dav.webdav.properties import ROOT_PERMISSIONS
from dav.webdav.xml import DAV, OC, element
from fsd.core import tree
from fsd.core.errors import FsdError, NotYetKnown
from fsd.core.names import quote_path, to_text
from fsd.core.space import SpaceRecord
from fsd.core.tree import Entry

if TYPE_CHECKING:
    from dav.webdav.call import Call
    from dav.webdav.propfind import Plan


_log = logging.getLogger(__name__)
_FINGERPRINT = f"{OC}data-fingerprint"


class _Seen:
    """The roots of the spaces below a virtual collection, looked up once for one answer."""

    def __init__(self, call: "Call", plan: "Plan") -> None:
        self._call = call
        self.fingerprints = any(name == _FINGERPRINT for *_, name in plan.live)
        """Whether they were asked for: each is read from a database."""
        self._roots: dict[str, Entry | None] = {}

    def root(self, child: Child) -> Entry | None:
        if child.record is None:
            return None
        if child.record.id not in self._roots:
            # As last known while the storage is away: its id, size and etag are still those of the space.
            found = root_entry(self._call.router.view, child.record)
            self._roots[child.record.id] = found or self._last_known(child.record)
        return self._roots[child.record.id]

    def _last_known(self, record: SpaceRecord) -> Entry | None:
        try:
            return tree.last_known_root(self._call.router.view.space(record))
        except FsdError as error:
            _log.info("space %s: nothing is known of its root: %s", record.id, error)
            return None

    def fingerprint(self, target: Virtual | Child) -> str:
        """The data fingerprint of a space, or one of all spaces of a collection that were rolled back or restored."""
        if isinstance(target, Child):
            return "" if target.record is None else self._fingerprint(target.record)
        told = [
            (child.record.id, self._fingerprint(child.record)) for child in target.children if child.record
        ]
        restored = sorted(f"{ident} {value}" for ident, value in told if value)
        return hashlib.blake2b("\n".join(restored).encode(), digest_size=16).hexdigest() if restored else ""

    def _fingerprint(self, record: SpaceRecord) -> str:
        try:
            return tree.data_fingerprint(self._call.router.view.space(record))
        except FsdError as error:
            _log.info("space %s: its data fingerprint is not known: %s", record.id, error)
            raise NotYetKnown("The answer is not known yet; ask again.") from error

    def meant(self, target: Virtual, child: Child) -> Virtual | Child:
        """What a member is: such a collection itself, or a space, also under the name that an alias has for it."""
        if child.record is not None:
            return child
        found = self._call.router.resolve(self._call.user, f"{target.href}/{quote_path(child.name)}")
        return found if isinstance(found, Virtual) else Child(child.name, found.record)

    def permissions(self, record: SpaceRecord) -> str:
        """The letters of a space's root for this user."""
        role = self._call.router.view.role(record, self._call.user)
        return ROOT_PERMISSIONS if role is not None and role.can_write and not record.read_only else ""


def responses(call: "Call", target: Virtual, plan: "Plan", children: bool, minimal: bool) -> list[bytes]:
    """The response elements of the collection and, if asked, its members."""
    seen = _Seen(call, plan)
    pieces = [_response(target.href + "/", _own_values(target, seen), plan, minimal)]
    if children:
        for child in target.children:
            href = f"{target.href}/{quote_path(child.name)}/"
            pieces.append(_response(href, _child_values(target, child, seen), plan, minimal))
    return pieces


def _own_values(target: Virtual, seen: _Seen) -> dict[str, str]:
    digest = hashlib.blake2b(b"/".join(target.names), digest_size=16)
    size, mtime = 0, 0
    for child in target.children:
        root = seen.root(child)
        digest.update(b"\0" + child.name + b"\0" + (root.etag.encode() if root else b"-"))
        if root is not None:
            size += root.size
            mtime = max(mtime, root.mtime_ns // 1_000_000_000)
    values = _values(b"/".join(target.names), digest.hexdigest(), size, mtime, target.names[-1:] or (b"",))
    return values | {_FINGERPRINT: seen.fingerprint(target)} if seen.fingerprints else values


def _child_values(target: Virtual, child: Child, seen: _Seen) -> dict[str, str]:
    meant = seen.meant(target, child)
    if isinstance(meant, Virtual):
        return _own_values(meant, seen)
    child, root = meant, seen.root(meant)
    path = b"/".join((*target.names, child.name))
    if child.record is None or root is None:
        etag = hashlib.blake2b(b"unavailable\0" + path, digest_size=16).hexdigest()
        values = _values(path, etag, 0, 0, (child.name,))
    else:
        values = _values(path, root.etag, root.size, root.mtime_ns // 1_000_000_000, (child.name,))
    if child.record is not None:
        ident = f"{child.record.id}!{root.id if root is not None else child.record.hex}"
        values |= {f"{OC}id": ident, f"{OC}fileid": ident}
        values[f"{OC}permissions"] = seen.permissions(child.record)
    if seen.fingerprints:
        values[_FINGERPRINT] = seen.fingerprint(child)
    return values


def _values(path: bytes, etag: str, size: int, mtime: int, name: tuple[bytes, ...]) -> dict[str, str]:
    ident = hashlib.blake2b(b"virtual\0" + path, digest_size=16).hexdigest()
    return {
        f"{DAV}resourcetype": "<d:collection/>",
        f"{DAV}displayname": escape(to_text(name[0])),
        f"{DAV}getetag": f'"{etag}"',
        f"{DAV}getlastmodified": http_date(mtime),
        f"{OC}id": ident,
        f"{OC}fileid": ident,
        f"{OC}permissions": "",
        f"{OC}size": str(size),
        f"{DAV}quota-used-bytes": str(size),
        f"{DAV}quota-available-bytes": "-3",
        f"{DAV}supportedlock": "",
        f"{DAV}lockdiscovery": "",
    }


def _response(href: str, values: dict[str, str], plan: "Plan", minimal: bool) -> bytes:
    names = [name for _, _, _, name in plan.live]
    found = [element(name, None if plan.names_only else values[name]) for name in names if name in values]
    missing = [name for name in names if name not in values] if not plan.all_dead else []
    missing += [*plan.dead, *plan.absent]
    parts = [f"<d:response><d:href>{escape(href)}</d:href>"]
    parts.append(
        f"<d:propstat><d:prop>{''.join(found)}</d:prop><d:status>HTTP/1.1 200 OK</d:status></d:propstat>"
    )
    if missing and not minimal:
        empty = "".join(element(name, None) for name in missing)
        parts.append(
            f"<d:propstat><d:prop>{empty}</d:prop><d:status>HTTP/1.1 404 Not Found</d:status></d:propstat>"
        )
    parts.append("</d:response>")
    return "".join(parts).encode()
