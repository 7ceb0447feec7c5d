"""Server-sent events as ownCloud's and OpenCloud's web clients understand them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fsd.core import ids, index
from fsd.core.index import DIRECTORY, FILE

if TYPE_CHECKING:
    import sqlite3

    from fsd.core.journal import Numbered
    from fsd.core.space import Space

_MOST = 500
"""Of more at once they are told that the space's root was touched, and look for themselves."""


def events(space: Space, changes: list[Numbered]) -> bytes:
    """The events for these changes."""
    if len(changes) > _MOST:
        return _event(space, "file-touched", space.key, space.key, "")
    left: dict[bytes, bytes] = {}
    """Where something was that moved; told right before where it is."""
    parts = []
    with space.index.read() as db:
        for change in changes:
            if change.kind == "left":
                left[change.node] = change.parent
            name = _name(change, left)
            if name is not None:
                parts.append(_event(space, name, change.node, change.parent, _etag(db, change)))
    return b"".join(parts)


def _name(change: Numbered, left: dict[bytes, bytes]) -> str | None:
    folder = change.node_kind == DIRECTORY
    match change.kind:
        case "created":
            return "folder-created" if folder else "file-touched"
        case "changed":
            return "postprocessing-finished"
        case "moved":
            if change.node not in left:
                return "item-restored"
            return "item-renamed" if left[change.node] == change.parent else "item-moved"
        case "deleted":
            return "item-trashed"
    return None


def _etag(db: sqlite3.Connection, change: Numbered) -> str:
    """The etag that a file has now; clients ask for a directory's."""
    row = index.by_id(db, change.node)
    if row is None or row.kind != FILE or change.kind == "deleted":
        return ""
    return f'"{ids.file_etag(row.id, row.size, row.mtime_ns, row.rev)}"'


def _event(space: Space, name: str, node: bytes, parent: bytes, etag: str) -> bytes:
    ident = space.record.id
    told = {
        "itemid": f"{ident}!{node.hex()}",
        "parentitemid": f"{ident}!{parent.hex()}",
        "spaceid": ident,
        "initiatorid": "",
        "etag": etag,
    }
    return f"event: {name}\ndata: {json.dumps(told)}\n\n".encode()
