"""The contents of the discovery documents, as plain data. What is advertised here works; nothing else is advertised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import fsd
from dav.http.dates import NANO, iso_date
from dav.routes import SPACES_PREFIX
from fsd.core import quota, tree
from fsd.core.errors import NotYetKnown, StorageUnavailable

if TYPE_CHECKING:
    from dav.view import View
    from fsd.core.accounts import User
    from fsd.core.space import Space, SpaceRecord
    from fsd.core.tree import Entry

Document = dict[str, Any]
PRODUCT = "fsd"
_PROTOCOL = (10, 11, 0)
"""The version of the ownCloud protocol: clients refuse servers that say less than 10."""
_POLL_MS = 30_000
_TUS = {
    "version": "1.0.0",
    "resumable": "1.0.0",
    "extension": "creation,creation-with-upload",
    "max_chunk_size": 0,
    "http_method_override": "",
}
_ARCHIVER = {
    "enabled": True,
    "version": "2.0.0",
    "formats": ["tar", "zip"],
    "archiver_url": "/archiver",
    "max_num_files": "200000",
    "max_size": str(1 << 50),
}
_NEARING, _CRITICAL = 0.75, 0.9


def status() -> Document:
    """`/status.php`: that this is a server to sync with, and that it is up."""
    version = ".".join(map(str, _PROTOCOL))
    return {
        "installed": True,
        "maintenance": False,
        "needsDbUpgrade": False,
        "version": f"{version}.0",
        "versionstring": version,
        "edition": "Community",
        "productname": PRODUCT,
        "product": PRODUCT,
        "productversion": fsd.__version__,
    }


def capabilities(agent: str) -> Document:
    """The OCS capabilities, for a client by its User-Agent: ownCloud's version 2 takes TUS for every file if it is
    offered, and can't resume it; all others take the one way of resumable uploads that they know."""
    major, minor, micro = _PROTOCOL
    return {
        "version": {
            "major": major,
            "minor": minor,
            "micro": micro,
            "string": f"{major}.{minor}.{micro}",
            "edition": "Community",
            "product": PRODUCT,
            "productversion": fsd.__version__,
        },
        "capabilities": {
            "core": {
                "pollinterval": _POLL_MS,
                "webdav-root": "remote.php/webdav",
                "support-url-signing": True,
                "support-sse": True,
                "status": status(),
            },
            "checksums": {
                "supportedTypes": ["SHA1", "MD5", "ADLER32", "SHA256"],
                "preferredUploadType": "SHA1",
            },
            "dav": {
                "chunking": "1.0",
                "trashbin": "1.0",
                "reports": ["search-files", "filter-files"],
                "invalidFilenameRegex": "",
                "httpErrorCodesThatResetFailingChunkedUploads": [404],
            },
            "files": {
                **({} if "mirall/2." in agent else {"tus_support": _TUS}),
                "privateLinks": False,
                "bigfilechunking": True,
                "undelete": True,
                "versioning": True,
                "favorites": True,
                "archivers": [_ARCHIVER],
                "blacklisted_files": [],
            },
            # Clients take a missing api_enabled for yes.
            "files_sharing": {
                "api_enabled": False,
                "resharing": False,
                "public": {"enabled": False},
                "user": {"send_mail": False, "profile_picture": False},
                "federation": {"incoming": False, "outgoing": False},
            },
            "spaces": {"version": "1.0.0", "enabled": True, "projects": True, "share_jail": False},
            "notifications": {"ocs-endpoints": []},
        },
    }


def ocs_config(base: str) -> Document:
    """`/ocs/v1.php/config`."""
    scheme, _, host = base.partition("://")
    ssl = "true" if scheme == "https" else "false"
    return {"version": "1.7", "website": PRODUCT, "host": host, "contact": "", "ssl": ssl}


def ocs_user(user: User, view: View) -> Document:
    """`/ocs/v?.php/cloud/user`; `id` goes literally into the URLs that clients make."""
    record = view.personal(user)
    amounts = None
    if record is not None:
        try:
            amounts = Amounts(view, view.space(record))
        except OSError:
            amounts = None  # the storage is away: the person is still who they are
    document: Document = {
        "id": user.name,
        "display-name": user.display_name,
        "displayname": user.display_name,
        "email": user.email,
        "language": "en",
    }
    if amounts is not None:
        document["quota"] = {
            "free": amounts.remaining,
            "used": amounts.used,
            "total": amounts.total,
            "relative": round(100 * amounts.share, 2),
            "definition": "none" if amounts.limit is None else "default",
        }
    return document


def signing_key(user: User, key: str) -> Document:
    """`/ocs/v?.php/cloud/user/signing-key`: what URLs are signed with for downloads without a login."""
    return {"user": user.name, "signing-key": key}


def me(user: User) -> Document:
    """`/graph/v1.0/me`."""
    return {
        "id": user.id,
        "displayName": user.display_name,
        "mail": user.email,
        "onPremisesSamAccountName": user.name,
        "userType": "Guest" if user.role == "guest" else "Member",
        "preferredLanguage": "en",
    }


class Amounts:
    """How full a space is, in bytes. Without a quota the disk is the limit."""

    def __init__(self, view: View, space: Space) -> None:
        self.limit = view.quota(space)
        self.used = tree.usage(space)
        free = quota.free_on_disk(space)
        available = quota.available(space)
        self.remaining = free if available is None else available
        self.total = self.used + free if self.limit is None else self.limit

    @property
    def share(self) -> float:
        """Used of total, 0 to 1 and beyond."""
        return self.used / self.total if self.total else 1.0

    @property
    def state(self) -> str:
        """In the words of the Graph API."""
        if self.total <= self.used:
            return "exceeded"
        return "critical" if self.share >= _CRITICAL else "nearing" if self.share >= _NEARING else "normal"


def drives(user: User, view: View, base: str) -> list[Document]:
    """The spaces that the user sees. NotYetKnown if a root's etag can't be told: a drive is never left out."""
    return [drive(record, user, view, base) for record, _ in view.visible(user)]


def drive(record: SpaceRecord, user: User, view: View, base: str) -> Document:
    """One space as a Graph drive; `root.eTag` is the one that PROPFIND of the root gives."""
    space = view.space(record)
    root = _root(space)
    owner = view.user(record.owner) if record.owner else None
    url = f"{base}{SPACES_PREFIX}{record.id}"
    document: Document = {
        "id": record.id,
        "driveType": record.type,
        "driveAlias": f"{record.type}/{record.alias}",
        "name": record.name,
        "lastModifiedDateTime": iso_date(root.mtime_ns // NANO),
        "webUrl": url,
        "root": {"id": record.id, "eTag": f'"{root.etag}"', "webDavUrl": url},
    }
    if owner is not None:
        document["owner"] = {"user": {"id": owner.id, "displayName": owner.display_name}}
    try:
        amounts = Amounts(view, space)
    except StorageUnavailable:
        return document
    document["quota"] = {
        "state": amounts.state,
        "total": amounts.total,
        "used": amounts.used,
        "remaining": amounts.remaining,
    }
    return document


def _root(space: Space) -> Entry:
    """The root; as it was last known while the storage is away, so that no client takes the space for removed."""
    try:
        return tree.lookup(space, b"")
    except StorageUnavailable:
        root = tree.last_known_root(space)
        if root is None:
            raise NotYetKnown("The storage of a space is not available; ask again in a moment.") from None
        return root


def webfinger(resource: str, base: str) -> Document:
    """`/.well-known/webfinger` (RFC 7033): this server is the one to use."""
    rel = "http://webfinger.opencloud/rel/server-instance"
    return {"subject": resource, "links": [{"rel": rel, "href": base, "titles": {"en": PRODUCT}}]}
