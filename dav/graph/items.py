"""Drives, and files and folders as driveItems: what the Graph API says of them, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dav.http.dates import NANO, iso_date
from dav.routes import SPACES_PREFIX
from dav.webdav.properties import content_type
from fsd.core import hashing
from fsd.core.names import quote_path, split, to_text

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.tree import Entry

Document = dict[str, Any]


class Items:
    """The entries of one space, for a client that reaches the server under `base`."""

    def __init__(self, space: Space, base: str) -> None:
        self._space, self._record = space, space.record
        self._url = f"{base}{SPACES_PREFIX}{space.record.id}"

    def ident(self, entry: Entry) -> str:
        """The id of an entry; a root has that of its space, as in the list of drives."""
        return f"{self._record.id}!{entry.id}" if entry.path else self._record.id

    def url(self, entry: Entry) -> str:
        """Where the entry is over WebDAV; the encoded path behind the space's."""
        return f"{self._url}/{quote_path(entry.path)}" if entry.path else self._url

    def document(self, entry: Entry, parent: Entry | None) -> Document:
        """A driveItem. `parent` is None for the root of the space."""
        found: Document = {
            "id": self.ident(entry),
            "name": to_text(entry.name) if entry.path else self._record.name,
            "eTag": f'"{entry.etag}"',
            "size": entry.size,
            "lastModifiedDateTime": iso_date(entry.mtime_ns // NANO),
            "webDavUrl": self.url(entry),
        }
        if entry.kind == "d":
            found["folder"] = {}
        else:
            found["file"] = self._file(entry)
        if parent is None:
            found["root"] = {}
        else:
            found["parentReference"] = self._reference(parent)
        return found

    def _file(self, entry: Entry) -> Document:
        facet: Document = {"mimeType": content_type(entry.name)}
        known = hashing.known(self._space, entry)
        if known is not None and known.sha1 is not None:
            facet["hashes"] = {"sha1Hash": known.sha1.hex()}
        return facet

    def _reference(self, parent: Entry) -> Document:
        return {
            "driveId": self._record.id,
            "driveType": self._record.type,
            "id": self.ident(parent),
            "name": to_text(split(parent.path)[1]) if parent.path else self._record.name,
            "path": "/" + to_text(parent.path),
        }
