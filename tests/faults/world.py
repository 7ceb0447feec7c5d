"""A small world to be broken: two spaces with known content, made anew for each run, and what must hold after it.

What stands on disk is read by the oracle's walk and by `open`, not through fsd. The rows are compared with that walk
after `replay` and a full sweep, as a restart would do.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from fsd.core import intents, versions
from fsd.core.operations import replay
from fsd.core.space import Space
from tests.support.oracle import walk
from tests.support.worlds import differences, make_space, rows, sweep

BIG = b"b" * 70_000
TREE: dict[bytes, bytes | None] = {
    b"file": b"the old content",
    b"other": b"another file",
    b"dir": None,
    b"dir/one": b"1",
    b"dir/sub": None,
    b"dir/sub/two": b"22",
    b"dir/sub/big": BIG,
    b"full": None,
    b"full/kept": b"must not get lost",
}
"""Files with their content, directories with None; parents first."""

Files = dict[bytes, bytes | None]


class World:
    """One or two spaces on disk, and Space objects of the parent process that are closed before a fork."""

    def __init__(
        self,
        base: Path,
        spaces: int = 1,
        other_base: Path | None = None,
        before: Callable[[bytes], object] | None = None,
    ) -> None:
        self.base = base
        self.before = before
        self.bases = [base / "a", (other_base or base) / "b"][:spaces]
        self.spaces: list[Space] = []
        self.ids: list[dict[bytes, str]] = []

    def fresh(self) -> None:
        """Everything anew: the tree, its rows, its ids."""
        self.close()
        self.spaces, self.ids = [], []
        for base in self.bases:
            shutil.rmtree(base, ignore_errors=True)
            space = make_space(base)
            versions.use(space.state_dir, 86_400.0)
            fill(space.root, TREE)
            sweep(space)
            self.spaces.append(space)
            self.ids.append({path: row[0] for path, row in rows(space).items()})
            if self.before is not None:
                self.before(space.root)
        self.close()

    def close(self) -> None:
        """Before a fork, and at the end."""
        for space in self.spaces:
            space.close()
            intents.forget(space)

    def remove(self) -> None:
        """Take it off the disk."""
        self.close()
        for base in self.bases:
            shutil.rmtree(base, ignore_errors=True)

    def opened(self) -> list[Space]:
        """In the child: spaces with their databases open, so that the operation alone is counted."""
        for space in self.spaces:
            if self.before is None:
                sweep(space)
            intents.of(space).pending()
            space.open_internal("staging")
        return self.spaces

    def recover(self) -> None:
        """What a restart does."""
        by_id = {space.record.id: space for space in self.spaces}
        for space in self.spaces:
            replay(space, by_id.get)
        for space in self.spaces:
            sweep(space)

    def check(self, allowed: list[list[Files]]) -> int:
        """All that must hold in every space; returns which of the allowed outcomes it is.

        `allowed[k][s]`: the tree of space `s` in outcome `k`; the same `k` must fit all spaces.
        """
        self.recover()
        found = [contents(space.root) for space in self.spaces]
        fitting = [k for k, outcome in enumerate(allowed) if outcome == found]
        assert fitting, f"none of the allowed outcomes: {[describe(tree) for tree in found]}"
        for space, ids in zip(self.spaces, self.ids, strict=True):
            assert differences(space) == []
            self._check_ids(space, ids)
            assert os.listdir(os.path.join(space.root, b".fsd/staging")) == []
            trash = os.path.join(space.root, b".fsd/trash/")
            info = {name.removesuffix(b".trashinfo") for name in os.listdir(trash + b"info")}
            assert info == set(os.listdir(trash + b"files"))
            assert intents.of(space).pending() == []
        return fitting[0]

    def _check_ids(self, space: Space, before: dict[bytes, str]) -> None:
        """What stands where it stood, untouched, has the id it had; no id stands at two places."""
        known = rows(space)
        assert len({row[0] for row in known.values()}) == len(known)
        for path, node_id in before.items():
            if path in known and path not in (b"file", b"other", b"dir", b"full") and b"/" not in path:
                assert known[path][0] == node_id, path
        if b"file" in known:
            assert known[b"file"][0] in before.values() or b"file" not in before

    def fingerprint(self) -> tuple[tuple[bytes, ...], ...]:
        """Which names stand on disk, internals included: two crash states with one of these are alike."""
        return tuple(
            tuple(
                sorted(
                    os.path.relpath(os.path.join(top, name), space.root)[:12] + b"/%d" % len(top)
                    for top, dirs, names in os.walk(space.root)
                    for name in dirs + names
                )
            )
            for space in self.spaces
        )

    def preserved(self, *wanted: bytes) -> None:
        """Each of these contents is somewhere in a space's tree, its trash or its versions: nobody's bytes are lost."""
        everything = set()
        for space in self.spaces:
            everything |= set(contents(space.root).values())
            for place in (b".fsd/trash/files", b".fsd/versions"):
                everything |= set(contents(os.path.join(space.root, place)).values())
        for content in wanted:
            assert content in everything, f"lost: {content[:40]!r}"


def fill(root: bytes, tree: Files) -> None:
    """Write a tree with plain system calls."""
    for path, content in tree.items():
        target = os.path.join(root, path)
        if content is None:
            os.mkdir(target)
        else:
            with open(target, "wb") as file:
                file.write(content)


def contents(root: bytes) -> Files:
    """What a reader of the disk finds: path to content, None for a directory."""
    found: Files = {}
    for path, entry in walk(root).items():
        if not path:
            continue
        if entry.kind == "f":
            with open(os.path.join(root, path), "rb") as file:
                found[path] = file.read()
        else:
            found[path] = None
    return found


def describe(tree: Files) -> str:
    """For failure messages."""
    return ", ".join(f"{os.fsdecode(p)}={'dir' if c is None else c[:20]!r}" for p, c in sorted(tree.items()))


def changed(*, add: Files | None = None, gone: tuple[bytes, ...] = ()) -> Files:
    """The tree after a change: without what is at or below `gone`, with `add`."""
    kept = {
        path: content
        for path, content in TREE.items()
        if not any(path == top or path.startswith(top + b"/") for top in gone)
    }
    return kept | (add or {})


def below(top: bytes, new: bytes) -> Files:
    """The subtree at `top`, as it looks when it is at `new`."""
    return {
        new + path[len(top) :]: content
        for path, content in TREE.items()
        if path == top or path.startswith(top + b"/")
    }


Operation = Callable[[list[Space]], object]
