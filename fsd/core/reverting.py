"""Back to a version: a replacement like any other, so that what stood there becomes a version in its turn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fsd.core.content import Upload
from fsd.core.versions import etag_of, open_version

if TYPE_CHECKING:
    from fsd.core.space import Space
    from fsd.core.tree import Entry


def restore(space: Space, node_id: str, key: str, path: bytes, if_match: str | None = None) -> Entry:
    """Give the file at `path` a version's content and mtime again; what it holds now becomes a version itself.

    Raises what `content.Upload` does, FileNotFoundError without the version.
    """
    fd, version = open_version(space, node_id, key)
    try:
        wanted = None if if_match is None else (if_match,)
        with Upload(space, path, length=version.size, mtime_ns=version.mtime_ns, if_match=wanted) as upload:
            upload.fill_from(fd, space.sums.one(etag_of(node_id, key)))
            entry, _ = upload.commit()
    finally:
        os.close(fd)
    return entry
