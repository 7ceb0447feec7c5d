"""The requests that a mount makes, each by the id of what it means: a folder that somebody moved meanwhile is still
the same folder. Nothing is overwritten that was not seen: etags go along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fsd.core.names import quote_path
from fsd.mount.remote import multistatus
from fsd.mount.remote.client import Answer, Client, Stream
from fsd.mount.remote.errors import Refused, refused
from fsd.mount.remote.multistatus import Found
from fsd.mount.remote.wire import Body

HOME = "/dav/home/"
_XML = ("Content-Type", "application/xml; charset=utf-8")


def address(ident: str, name: bytes | None = None) -> str:
    """The URL path of a node, or of a name in a folder."""
    place = f"/dav/spaces/{ident}"
    return place if name is None else f"{place}/{quote_path(name)}"


def seconds(mtime_ns: int) -> str:
    """X-OC-Mtime with all nine digits."""
    whole, part = divmod(abs(mtime_ns), 1_000_000_000)
    return f"{'-' if mtime_ns < 0 else ''}{whole}.{part:09d}"


class Dav:
    """WebDAV as this server speaks it. Errors: Offline, Refused."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def listing(self, path: str, depth: int = 1) -> list[Found]:
        """The resource itself, then its children."""
        headers = [("Depth", str(depth)), ("Prefer", "return=minimal"), _XML]
        for last in (False, True):
            try:
                async with self.client.stream("PROPFIND", path, headers, multistatus.ASKED) as got:
                    if got.status == 207:
                        return await multistatus.read(got.chunks)
                    raise refused(got.status, b"".join([chunk async for chunk in got.chunks]))
            except Refused as error:
                if last or error.status != 503:
                    raise
            await self.client.ask("OPTIONS", path, also=tuple(range(300, 600)))
        raise AssertionError("unreachable")

    async def one(self, path: str) -> Found | None:
        """One resource; None where the server proves that there is none."""
        try:
            return (await self.listing(path, 0))[0]
        except Refused as error:
            if error.status == 404:
                return None
            raise

    async def room(self, ident: str) -> tuple[int, int] | None:
        """(used, available) bytes of a space."""
        headers = [("Depth", "0"), _XML]
        answer = await self.client.ask("PROPFIND", address(ident), headers, multistatus.ROOM)
        return multistatus.room(answer.body)

    @asynccontextmanager
    async def get(self, ident: str, etag: str, start: int, count: int, size: int) -> AsyncIterator[Stream]:
        """Bytes of a file as of an etag: Refused 412 if it is another one by now."""
        headers = [("If-Match", f'"{etag}"'), ("Accept-Encoding", "identity")]
        if count < size:
            headers.append(("Range", f"bytes={start}-{start + count - 1}"))
        async with self.client.stream("GET", address(ident), headers) as got:
            if got.status not in (200, 206):
                raise refused(got.status, b"".join([chunk async for chunk in got.chunks]))
            if got.headers.get("content-length") != str(count):
                raise Refused(502, "it sends another part than was asked for")
            yield got

    async def put(self, path: str, body: Body, size: int, base: str | None, mtime_ns: int) -> Answer:
        """Replace what has the etag `base`, or make what is not there (None). Refused 412 otherwise."""
        headers = [_condition(base), ("X-OC-Mtime", seconds(mtime_ns)), ("Content-Length", str(size))]
        return await self.client.ask("PUT", path, headers, body)

    async def make(self, folder: str, name: bytes) -> Answer:
        """MKCOL."""
        return await self.client.ask("MKCOL", address(folder, name))

    async def delete(self, path: str, etag: str | None = None) -> None:
        """DELETE; only what has that etag, if one is given."""
        await self.client.ask("DELETE", path, [("If-Match", f'"{etag}"')] if etag else [])

    async def move(self, ident: str, folder: str, name: bytes, over: str | None) -> Answer:
        """MOVE; `over`: the etag of what is replaced there, None if nothing is. Refused 412 if that is not so."""
        there = address(folder, name)
        headers = [("Destination", there), ("Overwrite", "F" if over is None else "T")]
        if over is not None:
            headers.append(("If", f'<{there}> (["{over}"])'))
        return await self.client.ask("MOVE", address(ident), headers)

    async def set_time(self, ident: str, mtime_ns: int) -> None:
        """The time of a file's content."""
        body = (
            '<?xml version="1.0"?><d:propertyupdate xmlns:d="DAV:"><d:set><d:prop><d:lastmodified>'
            f"{seconds(mtime_ns)}</d:lastmodified></d:prop></d:set></d:propertyupdate>"
        )
        answer = await self.client.ask("PROPPATCH", address(ident), [_XML], body.encode())
        if b" 200 " not in answer.body:
            raise Refused(403, "it does not take the time")


def _condition(base: str | None) -> tuple[str, str]:
    return ("If-None-Match", "*") if base is None else ("If-Match", f'"{base}"')
