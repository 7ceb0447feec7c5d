"""A small WebDAV client over http.client: no library between the tests and the wire. Names are bytes."""

from __future__ import annotations

import base64
import http.client
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import quote_from_bytes, unquote_to_bytes

DAV = "{DAV:}"
Body = bytes | list[bytes] | None
"""A list is sent in chunks, its length not announced."""
OC = "{http://owncloud.org/ns}"
PROPERTIES = (
    b'<?xml version="1.0"?><d:propfind xmlns:d="DAV:" xmlns:oc="http://owncloud.org/ns"><d:prop>'
    b"<d:resourcetype/><d:getcontentlength/><d:getetag/><d:getlastmodified/><oc:id/><oc:fileid/><oc:size/>"
    b"<oc:permissions/></d:prop></d:propfind>"
)


class HttpError(AssertionError):
    """An answer with another status than the test can use."""

    def __init__(self, method: str, path: str, answer: Answer) -> None:
        super().__init__(f"{method} {path} -> {answer.status} {answer.body[:300]!r}")
        self.status = answer.status
        self.answer = answer


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def etag(self) -> str:
        """The ETag without its quotes; an AssertionError if it isn't a strong quoted one."""
        return unquoted(self.headers["etag"])


@dataclass(frozen=True)
class Resource:
    """One response of a multistatus. `path` is the decoded href below the prefix, without slashes at its
    ends."""

    path: bytes
    href: str
    is_dir: bool
    size: int
    length: int | None
    etag: str
    id: str
    permissions: str
    mtime: int
    properties: Mapping[str, str] = field(repr=False, default_factory=dict)


def unquoted(etag: str) -> str:
    """The opaque part of a strong etag of the promised form."""
    inner = etag[1:-1]
    assert etag[:1] == etag[-1:] == '"' and inner, f"not a quoted strong etag: {etag!r}"
    assert len(inner) <= 32 and set(inner) <= set("0123456789abcdef"), (
        f"not at most 32 lower-case hex digits: {etag!r}"
    )
    return inner


def quote(path: bytes) -> str:
    """The path percent-encoded byte by byte."""
    return quote_from_bytes(path, safe="/")


class Dav:
    """One user's view of one server, below `prefix` (such as `/dav/spaces/ID`). One connection, reopened when
    it was closed."""

    def __init__(
        self, host: str, port: int, user: str, password: str, prefix: str = "", timeout: float = 60
    ) -> None:
        self.host, self.port, self.user, self.password = host, port, user, password
        self.prefix = prefix.rstrip("/")
        self.timeout = timeout
        token = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._auth = {"Authorization": f"Basic {token}"} if user else {}
        self._connection: http.client.HTTPConnection | None = None

    def at(self, prefix: str) -> Dav:
        """The same user below another prefix."""
        return Dav(self.host, self.port, self.user, self.password, prefix, self.timeout)

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def url(self, path: bytes) -> str:
        """The request target of a path below the prefix."""
        return f"{self.prefix}/{quote(path)}"

    def raw(
        self, method: str, target: str, body: Body = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request; a kept-alive connection that the server closed meanwhile is opened again once."""
        for attempt in (0, 1):
            fresh = self._connection is None
            if self._connection is None:
                self._connection = http.client.HTTPConnection(self.host, self.port, timeout=self.timeout)
            try:
                self._connection.request(method, target, body=body, headers={**self._auth, **(headers or {})})
                response = self._connection.getresponse()
                data = response.read()
            except (http.client.HTTPException, OSError):
                self.close()
                if fresh or attempt:
                    raise
                continue
            if response.will_close:
                self.close()
            return Answer(
                response.status, {name.lower(): value for name, value in response.getheaders()}, data
            )
        raise AssertionError("unreachable")

    def request(
        self, method: str, path: bytes, body: Body = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """One request for a path below the prefix, whatever its status."""
        return self.raw(method, self.url(path), body, headers)

    def expect(
        self, *statuses: int, method: str, path: bytes, body: bytes | None = None, **headers: str
    ) -> Answer:
        """A request that must end with one of `statuses`; header names take `_` for `-`."""
        answer = self.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        if answer.status not in statuses:
            raise HttpError(method, self.url(path), answer)
        return answer

    def get(self, path: bytes) -> bytes:
        """A file's bytes."""
        return self.expect(200, method="GET", path=path).body

    def put(self, path: bytes, data: bytes, **headers: str) -> Answer:
        """Create or replace a file."""
        return self.expect(201, 204, method="PUT", path=path, body=data, **headers)

    def mkcol(self, path: bytes) -> Answer:
        """Create a directory."""
        return self.expect(201, method="MKCOL", path=path)

    def delete(self, path: bytes) -> Answer:
        """Delete a file or a tree."""
        return self.expect(204, method="DELETE", path=path)

    def move(
        self, path: bytes, target: bytes, *, overwrite: bool = True, verb: str = "MOVE", to: Dav | None = None
    ) -> Answer:
        """MOVE or COPY within this prefix, or to another one."""
        return self.expect(
            201,
            204,
            method=verb,
            path=path,
            Destination=(to or self).url(target),
            Overwrite="T" if overwrite else "F",
        )

    def copy(self, path: bytes, target: bytes, *, overwrite: bool = True, to: Dav | None = None) -> Answer:
        """COPY within this prefix, or to another one."""
        return self.move(path, target, overwrite=overwrite, verb="COPY", to=to)

    def propfind(self, path: bytes, depth: int = 1, body: bytes = PROPERTIES) -> list[Resource]:
        """The resource and, with Depth 1, its children, in the server's order."""
        headers = {"Depth": str(depth), "Content-Type": "application/xml"}
        answer = self.request("PROPFIND", path, body, headers)
        if answer.status != 207:
            raise HttpError("PROPFIND", self.url(path), answer)
        return parse_multistatus(answer.body, self.prefix)

    def stat(self, path: bytes) -> Resource:
        """One resource."""
        (found,) = self.propfind(path, 0)
        return found


def parse_multistatus(body: bytes, prefix: str) -> list[Resource]:
    """The responses of a 207; every one must have the promised properties with status 200."""
    root = ET.fromstring(body)
    assert root.tag == DAV + "multistatus", root.tag
    return [_resource(response, prefix) for response in root.findall(DAV + "response")]


def _resource(response: ET.Element, prefix: str) -> Resource:
    href = response.findtext(DAV + "href") or ""
    decoded, base = unquote_to_bytes(href), unquote_to_bytes(prefix)
    assert decoded.startswith(base), f"{href} is not below {prefix}"
    found: dict[str, str] = {}
    is_dir = False
    for propstat in response.findall(DAV + "propstat"):
        if " 200 " not in (propstat.findtext(DAV + "status") or "") + " ":
            continue
        for element in propstat.find(DAV + "prop") or ():
            found[element.tag] = element.text or ""
            if element.tag == DAV + "resourcetype":
                is_dir = element.find(DAV + "collection") is not None
    assert DAV + "getetag" in found and OC + "id" in found, (
        f"{href} lacks promised properties: {sorted(found)}"
    )
    assert found[OC + "id"] == found.get(OC + "fileid"), f"{href}: oc:id and oc:fileid differ"
    length = found.get(DAV + "getcontentlength")
    return Resource(
        path=decoded[len(base) :].strip(b"/"),
        href=href,
        is_dir=is_dir,
        size=int(found.get(OC + "size") or -1),
        length=int(length) if length else None,
        etag=unquoted(found[DAV + "getetag"]),
        id=found[OC + "id"],
        permissions=found.get(OC + "permissions", ""),
        mtime=int(parsedate_to_datetime(found[DAV + "getlastmodified"]).timestamp())
        if DAV + "getlastmodified" in found
        else 0,
        properties=found,
    )
