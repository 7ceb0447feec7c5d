"""Dead properties (RFC 4918, 4.3): what clients attach to a resource and the server only keeps.

One attribute each: `user.fsd.p.` and the percent-encoded Clark name (`{namespace}local`). What doesn't fit (a value
over 1 KiB, a long name, a node that takes no attributes, no room in the inode's block) goes into
`.fsd/meta/<node id>.json`, which the attribute `user.fsd.p.#` announces. `cp -a` carries the attributes along, our
own COPY both.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import quote, unquote

from fsd.core import bequest, copying, ids, intents, labels, lease, ownfiles
from fsd.core.errors import Forbidden, NameRefused, QuotaExceeded
from fsd.core.groupsync import sync_directory
from fsd.core.labels import PROPERTY_PREFIX
from fsd.core.places import Place, internal, open_source, require_writable
from fsd.core.settling import make_known
from fsd.core.syscalls import open_beneath, statx
from fsd.core.tree import lookup

if TYPE_CHECKING:
    from fsd.core.intents import Intent
    from fsd.core.space import Space

_log = logging.getLogger(__name__)

VALUE_CAP: Final = 1024
"""Bytes of a value kept in an attribute; ext4 has 4 KiB for all attributes of a file together."""
TOTAL_CAP: Final = 256 * 1024
"""Bytes of names and values of one node; more is refused (507)."""
_NAME_CAP: Final = 255
_FILE_CAP: Final = 8 * TOTAL_CAP
"""Bytes of an overflow file: JSON may take six for one, and names count besides."""
MORE: Final = PROPERTY_PREFIX + "#"
"""Announces that there is an overflow file."""
_SAFE: Final = "{}:/-_.~?&=+,;@!$'()*"
_NO_ROOM = (errno.ENOSPC, errno.EOPNOTSUPP, errno.E2BIG, errno.ERANGE, errno.EDQUOT)


class _State(NamedTuple):
    """Where a node's properties are: attribute values, and what is in the overflow file (by Clark name)."""

    attributes: dict[str, bytes]
    overflow: dict[str, bytes]

    def spilled(self) -> _State:
        """The same with everything in the overflow file."""
        inside = {
            unquote(name.removeprefix(PROPERTY_PREFIX), errors="surrogateescape"): value
            for name, value in self.attributes.items()
        }
        return _State({}, self.overflow | inside)

    def values(self) -> dict[str, bytes]:
        """By Clark name."""
        return self.spilled().overflow

    def steps_to(self, other: _State) -> int:
        """How many files and attributes differ: more than one can't be changed at once."""
        names = self.attributes.keys() | other.attributes.keys()
        changed = sum(self.attributes.get(name) != other.attributes.get(name) for name in names)
        return changed + 2 * (self.overflow != other.overflow)


def attribute_name(clark: str) -> str | None:
    """The attribute for a property; None if the name is too long for one."""
    name = PROPERTY_PREFIX + quote(clark, safe=_SAFE, errors="surrogateescape")
    return name if len(name) <= _NAME_CAP else None


def get_all(space: Space, path: bytes, node_id: str | None = None) -> dict[str, bytes]:
    """All dead properties of the entry at `path`: Clark name to XML. `node_id` spares a look when it is known."""
    place = _open(space, path)
    try:
        return _read(place, node_id).values()
    except ownfiles.Unusable as error:
        # Shown are those that can be read; to change them the file has to be mended (`check`).
        _log.info("space %s: %s", space.record.id, error)
        return _State(_attributes(place), {}).values()
    finally:
        place.close()


def update(space: Space, path: bytes, set: Mapping[str, bytes], remove: Collection[str] = ()) -> None:
    """Set and remove properties, all or none, also through a crash. Removing what isn't there is fine.

    Raises NameRefused, QuotaExceeded (too much for one resource), Forbidden, FileNotFoundError.
    """
    require_writable(space)
    if any(not clark or "\0" in clark for clark in set):
        raise NameRefused("A property needs a name.")
    with intents.of(space).alone(path):
        node_id = lookup(space, path).id
        with closing(_open(space, path)) as place:
            _settle(place)
            _update(place, node_id, set, remove)
            if path:
                make_known(space, place)


def _update(place: Place, node_id: str, set: Mapping[str, bytes], remove: Collection[str]) -> None:
    old = _read(place, node_id)
    values = {clark: value for clark, value in old.values().items() if clark not in remove}
    values |= {clark: bytes(value) for clark, value in set.items()}
    if sum(len(clark) + len(value) for clark, value in values.items()) > TOTAL_CAP:
        raise QuotaExceeded(f"The properties of '{place.text}' would take more than {TOTAL_CAP // 1024} KiB.")
    new = _placed(place, values, keep_out=old.overflow.keys() - set.keys())
    _change(place, node_id, old, new)


def overflow_of(space: Space, fd: int) -> dict[str, bytes]:
    """What of an open node's properties doesn't fit attributes; the rest travels as `user.*`."""
    names = copying.list_attributes(fd)
    if MORE not in names and labels.ID_ATTRIBUTE in names:
        return {}
    return _load(space, _id_of(space, fd))


def copy_overflow(src_space: Space, src: int, dst_space: Space, dst: int) -> None:
    """Carry it from one open node to another that was just made, and has its derived id."""
    overflow = overflow_of(src_space, src)
    if overflow:
        store_overflow(dst_space, labels.new_label(dst_space, dst)[0], overflow)


def overflows_below(place: Place) -> Iterator[tuple[bytes, str, dict[str, bytes]]]:
    """(binding, id, overflow) of each file and directory at and below a place that has one."""
    with internal(place.space, "meta") as meta:
        if not os.listdir(b"/proc/self/fd/%d" % meta):
            return
    waiting = [place.name]
    while waiting:
        path = waiting.pop()
        try:
            fd = open_beneath(place.fd, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.ENOENT):
                raise
            continue  # a link, a special file, or nothing we may read: it goes along without
        try:
            overflow = overflow_of(place.space, fd)
            found = statx(fd, b"")
            if overflow:
                yield ids.node_binding(fd, b"", found), _id_of(place.space, fd), overflow
            if stat.S_ISDIR(found.mode):
                waiting += [path + b"/" + name for name in os.listdir(b"/proc/self/fd/%d" % fd)]
        finally:
            os.close(fd)


def _settle(place: Place) -> None:
    """Take back what was cut off at this node, before it is changed: later it would undo this change, too."""
    known = intents.of(place.space)
    binding = (place.binding() or b"").hex()
    for found in known.pending():
        if found.kind != "properties" or found.body.get("binding") != binding:
            continue
        with known.take_over(found.number) as abandoned:
            if abandoned and (intent := known.get(found.number)) is not None:
                _undo(place, intent)
                known.delete([intent.number])


def _undo(place: Place, intent: Intent) -> None:
    attributes, overflow = json.loads(str(intent.body["old"]))
    _write(place, str(intent.body["id"]), _State(_from_hex(attributes), _from_hex(overflow)))


def finish_update(space: Space, intent: Intent) -> list[bytes]:
    """After a crash in `update`: take it back, it was not answered."""
    path = bytes.fromhex(str(intent.body["path"]))
    known = intents.of(space)
    with known.alone(path):
        try:
            place = _open(space, path)
        except FileNotFoundError:
            return []
        with closing(place):
            # Who changed them in the meantime has settled it first, and deleted it.
            if known.get(intent.number) and (place.binding() or b"").hex() == intent.body["binding"]:
                _undo(place, intent)
                known.delete([intent.number])
    return [path] if path else []


def _open(space: Space, path: bytes) -> Place:
    return open_source(space, path) if path else Place(space, b"", os.dup(space.root_fd()), b".")


def _read(place: Place, node_id: str | None) -> _State:
    names = copying.list_attributes(place.link)
    attributes = _attributes(place)
    # An unlabelled node may be on a filesystem without attributes, where nothing could announce the overflow.
    if MORE not in names and labels.ID_ATTRIBUTE in names:
        return _State(attributes, {})
    return _State(attributes, _load(place.space, node_id or lookup(place.space, place.path).id))


def _attributes(place: Place) -> dict[str, bytes]:
    """The properties that are attributes of the node itself."""
    attributes = {}
    for name in copying.list_attributes(place.link):
        if name.startswith(PROPERTY_PREFIX) and name != MORE:
            value = copying.get_attribute(place.link, name)
            if value is not None:
                attributes[name] = value
    return attributes


def _placed(place: Place, values: Mapping[str, bytes], keep_out: Collection[str]) -> _State:
    """Decide where each value goes; what is in the overflow file and not touched stays there."""
    found = place.seen()
    # xattr(7): user attributes are for regular files and directories only.
    takes = found is not None and (stat.S_ISREG(found.mode) or stat.S_ISDIR(found.mode))
    state = _State({}, {})
    for clark, value in values.items():
        name = attribute_name(clark)
        if name is None or not takes or len(value) > VALUE_CAP or clark in keep_out:
            state.overflow[clark] = value
        else:
            state.attributes[name] = value
    return state


def _change(place: Place, node_id: str, old: _State, new: _State) -> None:
    steps = old.steps_to(new)
    if not steps:
        return
    known = intents.of(place.space)
    with known.begin() as ticket:
        if steps > 1:
            saved = json.dumps([_to_hex(old.attributes), _to_hex(old.overflow)])
            body: intents.Body = {
                "path": place.path.hex(), "binding": (place.binding() or b"").hex(), "id": node_id, "old": saved,
            }  # fmt: skip
            ticket.record("properties", body)
        try:
            _write_somewhere(place, node_id, new)
        except OSError as error:
            if place.may_write():
                _write(place, node_id, old)
            if steps > 1:
                known.delete([ticket.number])
            if error.errno in (errno.EACCES, errno.EPERM):
                raise Forbidden(f"The properties of '{place.text}' can't be changed.") from error
            raise
        if steps > 1:
            # Not left for later as others are: undoing it once more would undo what is set after it, too.
            known.delete([ticket.number])


def _write_somewhere(place: Place, node_id: str, state: _State) -> None:
    try:
        _write(place, node_id, state)
    except OSError as error:
        if error.errno not in _NO_ROOM or not state.attributes:
            raise
        _write(place, node_id, state.spilled())


def _write(place: Place, node_id: str, state: _State) -> None:
    """Make the node's properties those of `state`; the overflow file first, so that its announcement is true."""
    names = copying.list_attributes(place.link)
    if state.overflow:
        store_overflow(place.space, node_id, state.overflow, since=place.token)
    for name in names:
        if name.startswith(PROPERTY_PREFIX) and name != MORE and name not in state.attributes:
            _remove(place, name)
    if state.overflow and MORE not in names:
        place.require()
        try:
            os.setxattr(place.link, MORE, b"1", follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
    for name, value in state.attributes.items():
        if copying.get_attribute(place.link, name) != value:
            place.require()
            os.setxattr(place.link, name, value, follow_symlinks=False)
    if not state.overflow:
        # A host that stood still would remove the announcement of what the next one has put there: it stays, with an
        # empty file, where there are several.
        announced = MORE in names and lease.host_of(place.space.state_dir) is not None
        if MORE in names and not announced:
            _remove(place, MORE)
        store_overflow(place.space, node_id, {}, announced=announced, since=place.token)


def _remove(place: Place, name: str) -> None:
    place.require()
    try:
        os.removexattr(place.link, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise


def _id_of(space: Space, fd: int) -> str:
    """The id of an open node without asking the index: a proven label's, else the derived one."""
    raw = copying.get_attribute(fd, labels.ID_ATTRIBUTE)
    label = labels.parse(raw, space.secret, ids.node_binding(fd, b"", statx(fd, b""))) if raw else None
    return label.id.hex() if label is not None and label.proven else labels.new_label(space, fd)[0]


def _load(space: Space, node_id: str) -> dict[str, bytes]:
    """What the overflow file holds. Unusable if it is damaged."""
    with internal(space, "meta") as meta:
        try:
            raw = ownfiles.read(meta, _file_name(node_id), _FILE_CAP)
        except FileNotFoundError:
            return {}
    try:
        found = ownfiles.parse(raw)["properties"]
        return {str(clark): value.encode("utf-8", "surrogateescape") for clark, value in found.items()}
    except (ValueError, KeyError, AttributeError):
        raise ownfiles.Unusable(f"The properties in '.fsd/meta/{node_id}.json' are damaged.") from None


def store_overflow(
    space: Space,
    node_id: str,
    overflow: Mapping[str, bytes],
    *,
    announced: bool = False,
    since: int | None = None,
) -> None:
    """Replace the overflow file atomically and durably; without content there is no file, unless one is `announced`.
    `since`: by which token it was read (see `lease.require`)."""
    name = _file_name(node_id)
    with (
        internal(space, "meta") as meta,
        internal(space, "staging") as staging,
        intents.of(space).begin() as ticket,
    ):
        if not overflow and not announced:
            _drop_overflow(space, meta, name, staging, ticket.name, since)
            return
        texts = {clark: value.decode("utf-8", "surrogateescape") for clark, value in overflow.items()}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        with bequest.fenced():
            fd = os.open(ticket.name, flags, 0o600, dir_fd=staging)
            try:
                with open(fd, "w", encoding="ascii") as file:
                    json.dump({"version": 1, "properties": texts}, file)
                    file.flush()
                    os.fsync(fd)
                lease.require(space, since)
                os.rename(ticket.name, name, src_dir_fd=staging, dst_dir_fd=meta)
            except BaseException:
                os.unlink(ticket.name, dir_fd=staging)
                raise
        sync_directory(meta)


def _drop_overflow(
    space: Space, meta: int, name: bytes, staging: int, aside: bytes, since: int | None
) -> None:
    """By way of this host's own place, which another one that has taken over has taken away: it may have put another
    file there. A crash leaves it to the next sweep."""
    lease.require(space, since)
    try:
        os.rename(name, aside, src_dir_fd=meta, dst_dir_fd=staging)
    except FileNotFoundError:
        lease.require(space, since)
        return
    os.unlink(aside, dir_fd=staging)


def has_overflow(space: Space, node_id: str) -> bool:
    """Whether there is an overflow file for an id."""
    with internal(space, "meta") as meta:
        try:
            os.stat(_file_name(node_id), dir_fd=meta, follow_symlinks=False)
        except FileNotFoundError:
            return False
    return True


def _file_name(node_id: str) -> bytes:
    return node_id.encode("ascii") + b".json"


def _to_hex(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _from_hex(values: Mapping[str, str]) -> dict[str, bytes]:
    return {name: bytes.fromhex(value) for name, value in values.items()}
