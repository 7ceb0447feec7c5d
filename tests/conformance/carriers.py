"""What carries file operations: the core itself, WebDAV over the core, a mount. One vocabulary, so that one suite
fits all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fsd.core import content, errors, operations, tree
from fsd.core.space import Space
from fsd.core.tree import Entry
from tests.support.davclient import Answer, Dav, Resource


class Refused(Exception):
    """The carrier said no: `why` is missing, exists, parent, precondition, name, kind or other."""

    def __init__(self, why: str, detail: object = "") -> None:
        super().__init__(f"{why}: {detail}")
        self.why = why


@dataclass(frozen=True)
class Seen:
    """One entry as a carrier shows it."""

    kind: str  # f, d or o
    size: int
    id: str
    etag: str
    mtime: int


class Carrier(Protocol):
    """File operations on one space. Paths are bytes below its root; each method raises Refused."""

    root: bytes
    any_name: bool
    """Whether names may be made that HTTP refuses: bytes that are no UTF-8, control characters."""
    saves_by_rename: bool
    """Whether a rename can't say if it is a move or the last step of saving a file."""

    def put(self, path: bytes, data: bytes, *, if_match: str | None = None, new: bool = False) -> str: ...
    def get(self, path: bytes) -> bytes: ...
    def make_directory(self, path: bytes) -> None: ...
    def delete(self, path: bytes) -> None: ...
    def move(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool: ...
    def copy(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool: ...
    def look(self, path: bytes) -> Seen: ...
    def names(self, path: bytes) -> dict[bytes, Seen]: ...


class CoreCarrier:
    """The core, called directly."""

    any_name = saves_by_rename = False

    def __init__(self, space: Space) -> None:
        self.space, self.root = space, space.root

    def put(self, path: bytes, data: bytes, *, if_match: str | None = None, new: bool = False) -> str:
        """The etag of what was written."""
        try:
            upload = content.Upload(
                self.space,
                path,
                length=len(data),
                if_match=None if if_match is None else {if_match},
                must_not_exist=new,
            )
            with upload:
                upload.write(data)
                entry, _ = upload.commit()
        except OSError as error:
            raise _refused(error) from error
        return entry.etag

    def get(self, path: bytes) -> bytes:
        """All bytes of a file."""
        try:
            fd, entry = tree.open_file(self.space, path)
        except OSError as error:
            raise _refused(error) from error
        with open(fd, "rb") as file:
            data = file.read()
        assert len(data) == entry.size
        return data

    def make_directory(self, path: bytes) -> None:
        """One new directory."""
        try:
            operations.make_directory(self.space, path)
        except OSError as error:
            raise _refused(error) from error

    def delete(self, path: bytes) -> None:
        """Into the trash."""
        try:
            operations.delete(self.space, path)
        except OSError as error:
            raise _refused(error) from error

    def move(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        try:
            return operations.move(self.space, source, self.space, target, overwrite=overwrite)
        except OSError as error:
            raise _refused(error) from error

    def copy(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        try:
            return operations.copy(self.space, source, self.space, target, overwrite=overwrite)
        except OSError as error:
            raise _refused(error) from error

    def look(self, path: bytes) -> Seen:
        """One entry."""
        try:
            return _from_entry(tree.lookup(self.space, path))
        except OSError as error:
            raise _refused(error) from error

    def names(self, path: bytes) -> dict[bytes, Seen]:
        """The entries of a directory."""
        try:
            _, children = tree.listing(self.space, path)
        except OSError as error:
            raise _refused(error) from error
        return {child.name: _from_entry(child) for child in children}


def _from_entry(entry: Entry) -> Seen:
    kind = entry.kind if entry.kind in "fd" else "o"
    return Seen(kind, entry.size, entry.id, entry.etag, entry.mtime_ns // 10**9)


def _refused(error: OSError) -> Refused:
    match error:
        case errors.ParentMissing():
            return Refused("parent", error)
        case errors.PreconditionFailed():
            return Refused("precondition", error)
        case errors.NameRefused():
            return Refused("name", error)
        case FileNotFoundError():
            return Refused("missing", error)
        case FileExistsError():
            return Refused("exists", error)
        case NotADirectoryError() | IsADirectoryError():
            return Refused("kind", error)
        case errors.Forbidden():
            return Refused("forbidden", error)
    return Refused("other", repr(error))


class DavCarrier:
    """The same over HTTP."""

    any_name = saves_by_rename = False

    def __init__(self, dav: Dav, root: bytes) -> None:
        self.dav, self.root = dav, root

    def _ask(self, method: str, path: bytes, *good: int, body: bytes | None = None, **headers: str) -> Answer:
        answer = self.dav.request(
            method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
        )
        if answer.status in good:
            return answer
        reasons = {
            404: "missing",
            405: "exists",
            409: "parent",
            412: "precondition",
            400: "name",
            403: "forbidden",
        }
        raise Refused(
            reasons.get(answer.status, "other"), f"{method} {path!r}: {answer.status} {answer.body[:200]!r}"
        )

    def put(self, path: bytes, data: bytes, *, if_match: str | None = None, new: bool = False) -> str:
        """The etag of what was written."""
        headers = {"If_Match": f'"{if_match}"'} if if_match else {}
        if new:
            headers["If_None_Match"] = "*"
        return self._ask("PUT", path, 201, 204, body=data, **headers).etag

    def get(self, path: bytes) -> bytes:
        """All bytes of a file."""
        return self._ask("GET", path, 200).body

    def make_directory(self, path: bytes) -> None:
        """One new directory."""
        self._ask("MKCOL", path, 201)

    def delete(self, path: bytes) -> None:
        """Into the trash."""
        self._ask("DELETE", path, 204)

    def _transfer(self, verb: str, source: bytes, target: bytes, overwrite: bool) -> bool:
        headers = {"Destination": self.dav.url(target), "Overwrite": "T" if overwrite else "F"}
        return self._ask(verb, source, 201, 204, **headers).status == 201

    def move(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        return self._transfer("MOVE", source, target, overwrite)

    def copy(self, source: bytes, target: bytes, *, overwrite: bool = True) -> bool:
        """Whether the target is new."""
        return self._transfer("COPY", source, target, overwrite)

    def _list(self, path: bytes, depth: int) -> list[Resource]:
        from tests.support.davclient import HttpError

        try:
            return self.dav.propfind(path, depth)
        except HttpError as error:
            raise Refused("missing" if error.status == 404 else "other", error) from error

    def look(self, path: bytes) -> Seen:
        """One entry."""
        return _from_resource(self._list(path, 0)[0])

    def names(self, path: bytes) -> dict[bytes, Seen]:
        """The entries of a directory."""
        _, *children = self._list(path, 1)
        return {child.path.rpartition(b"/")[2]: _from_resource(child) for child in children}


def _from_resource(resource: Resource) -> Seen:
    kind = "d" if resource.is_dir else "f" if resource.length is not None else "o"
    return Seen(kind, resource.size, resource.id.rpartition("!")[2], resource.etag, resource.mtime)
