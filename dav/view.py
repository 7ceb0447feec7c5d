"""What the registry said when a request began: users, spaces, roles and quotas of one generation.

A request asks for each of them several times.  One read of the generation number a request tells whether
anything changed in any process; as long as nothing did, all answers come from memory.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from fsd.core.accounts import User
from fsd.core.grants import Role
from fsd.core.links import Link
from fsd.core.registry import Registry
from fsd.core.space import Space, SpaceRecord

_T = TypeVar("_T")
_LIMIT = 20_000


class View:
    """Answers of one generation, filled as they are asked.  Thread-safe: a race only asks twice."""

    def __init__(self, registry: Registry, generation: int) -> None:
        self.generation = generation
        self._registry = registry
        self._known: dict[Hashable, Any] = {}

    def memo(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """What follows from this generation alone, made once."""
        try:
            found: _T = self._known[key]
        except KeyError:
            found = make()
            if len(self._known) >= _LIMIT:
                self._known.clear()
            self._known[key] = found
        return found

    def user(self, name: str) -> User | None:
        """The user of that name, whatever its case."""
        return self.memo(("user", name), lambda: self._registry.accounts.find(name))

    def personal(self, user: User) -> SpaceRecord | None:
        return self.memo(("personal", user.id), lambda: self._registry.personal(user))

    def record(self, space_id: str) -> SpaceRecord:
        """FileNotFoundError for unknown and deleted spaces."""
        return self.memo(("record", space_id), lambda: self._registry.get(space_id))

    def role(self, record: SpaceRecord, user: User) -> Role | None:
        return self.memo(("role", record.id, user.id), lambda: self._registry.grants.role_of(record, user))

    def space(self, record: SpaceRecord) -> Space:
        """The open space; SpaceDisabled, FileNotFoundError."""
        return self.memo(("space", record.id), lambda: self._registry.open(record.id))

    def quota(self, space: Space) -> int | None:
        return self.memo(("quota", space.record.id), lambda: self._registry.grants.quota(space))

    def visible(self, user: User) -> list[tuple[SpaceRecord, Role]]:
        """The spaces in which the user has a role."""

        def find() -> list[tuple[SpaceRecord, Role]]:
            pairs = [(record, self.role(record, user)) for record in self._registry.spaces()]
            return [(record, role) for record, role in pairs if role is not None]

        return self.memo(("visible", user.id), find)

    def link(self, digest: str) -> tuple[SpaceRecord, Link] | None:
        """The public link whose address has this digest, and its space."""

        def find() -> dict[str, tuple[SpaceRecord, Link]]:
            grants = self._registry.grants
            return {
                link.digest: (record, link)
                for record in self._registry.spaces()
                for link in grants.acl(record).links
            }

        return self.memo(("links",), find).get(digest)

    def user_by_id(self, user_id: str) -> User | None:
        return self.memo(("user id", user_id), lambda: self._registry.accounts.by_id(user_id))


class Views:
    """The current view of a registry."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._guard = threading.Lock()
        self._latest = View(registry, registry.generation())

    @property
    def latest(self) -> View:
        """The view of the request that began last; costs nothing."""
        return self._latest

    def current(self) -> View:
        """A view that is right now."""
        generation = self.registry.generation()
        view = self._latest
        if view.generation != generation:
            # What is read into the new view may already be newer than its number: then it is replaced again.
            view = View(self.registry, generation)
            with self._guard:
                self._latest = view
        return view
