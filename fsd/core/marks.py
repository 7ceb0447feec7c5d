"""Favourites and tags: what people attach to files and folders to find them again. Properties like the dead ones, in
attributes that travel with the tree; favourites are each user's own. Which nodes have properties at all is known to the
index, so looking for marks costs what is marked, not the tree.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape, unescape

from fsd.core import index, properties
from fsd.core.announced import settle
from fsd.core.errors import NameRefused
from fsd.core.places import internal

if TYPE_CHECKING:
    from fsd.core.space import Space

PRIVATE: Final = "{urn:fsd:"
"""Properties of this namespace are the service's own; clients neither see nor set them."""
TAGS: Final = "{http://owncloud.org/ns}tags"
_MOST_TAGS: Final = 100
_OVERFLOW: Final = re.compile(rb"[0-9a-f]{32}\.json")


def favorite_name(user_id: str) -> str:
    """The property that makes something a user's favourite."""
    return f"{PRIVATE}favorite}}{user_id}"


def is_favorite(values: Mapping[str, bytes], user_id: str) -> bool:
    return favorite_name(user_id) in values


def filter_of(user_id: str, favorite: bool, tags: Collection[str]) -> Callable[[Mapping[str, bytes]], bool]:
    """Whether a node's properties make it what is looked for: a favourite of the user, if asked, with all the tags."""

    def wanted(values: Mapping[str, bytes]) -> bool:
        if favorite and not is_favorite(values, user_id):
            return False
        return not set(tags) - set(tags_of(values))

    return wanted


def tags_of(values: Mapping[str, bytes]) -> list[str]:
    """The tags among a node's properties."""
    text = values.get(TAGS, b"").decode("utf-8", "replace").partition(">")[2].rpartition("<")[0]
    return [tag for tag in (part.strip() for part in unescape(text).split(",")) if tag]


def change_tags(space: Space, path: bytes, add: list[str], remove: list[str]) -> list[str]:
    """Add and remove tags; what there is now. NameRefused for a tag that is empty, has a comma or is one too many."""
    for tag in add:
        if not tag.strip() or "," in tag or not tag.isprintable() or len(tag) > 100:
            raise NameRefused("A tag is up to 100 printable characters without a comma.")
    had = tags_of(properties.get_all(space, path))
    tags = [tag for tag in dict.fromkeys((*had, *(tag.strip() for tag in add))) if tag not in remove]
    if len(tags) > _MOST_TAGS:
        raise NameRefused(f"At most {_MOST_TAGS} tags can be attached.")
    if tags != had:
        value = f'<oc:tags xmlns:oc="http://owncloud.org/ns">{escape(",".join(tags))}</oc:tags>'.encode()
        properties.update(space, path, {TAGS: value} if tags else {}, () if tags else (TAGS,))
    return tags


def marked(space: Space, below: bytes, wanted: Callable[[Mapping[str, bytes]], bool]) -> Iterator[bytes]:
    """Paths at or below a directory whose properties are as wanted."""
    settle(space)
    with space.index.read() as db:
        ids = {row[0] for row in db.execute("SELECT id FROM node WHERE xattrs & 1 AND parent IS NOT NULL")}
        # Where there are no attributes, the properties are files named by the id.
        with internal(space, "meta") as meta:
            names = os.listdir(b"/proc/self/fd/%d" % meta)
        for name in names:
            if _OVERFLOW.fullmatch(name):
                ids.add(bytes.fromhex(name[:32].decode()))
        paths = []
        for node_id in ids:
            row = index.by_id(db, node_id)
            path = index.path_of(db, row.n) if row is not None else None
            if path is not None and (not below or path == below or path.startswith(below + b"/")):
                paths.append((path, node_id.hex()))
    for path, ident in sorted(paths):
        try:
            values = properties.get_all(space, path, ident)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        if wanted(values):
            yield path
