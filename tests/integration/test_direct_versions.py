"""Programs that overwrite files in place, in a space that clones: each ready content becomes a version."""

from __future__ import annotations

import os

import pytest

from fsd.core import ready, shadows, tree, versions
from fsd.core.shadows import CannotClone
from fsd.core.sweep import Sweep
from tests.support.mounts import disk
from tests.support.waiting import wait_for
from tests.support.worlds import make_space


def settled(space):
    """Everything is looked at, and ready."""
    sweep = Sweep(space)
    sweep.begin()
    while not sweep.step(1.0).finished:
        pass
    keeper = ready.Readiness(space)

    def none_left() -> bool:
        keeper.settle(1.0)
        return ready.waiting(space) == 0

    wait_for(none_left, what="ready files", every=0.2)
    while shadows.step(space):
        pass


def contents(space, path):
    node_id = tree.lookup(space, path).id
    found = []
    for version in versions.items(space, node_id):
        fd, _ = versions.open_version(space, node_id, version.key)
        with open(fd, "rb") as file:
            found.append(file.read())
    return found


def test_overwritten_in_place(tmp_path):
    with disk(tmp_path, "b", kind="btrfs") as made:
        space = make_space(made.place)
        versions.use(space.state_dir, 90 * 86_400)
        path = space.root + b"/f"
        for content in (b"first" * 1000, b"second" * 1000, b"third" * 1000):
            with open(path, "wb") as file:
                file.write(content)
            settled(space)
        assert contents(space, b"f") == [b"second" * 1000, b"first" * 1000]
        os.rename(path, space.root + b"/g")
        os.chmod(space.root + b"/g", 0o600)
        settled(space)
        assert len(contents(space, b"g")) == 2, "what is not content makes no version"
        node_id = tree.lookup(space, b"g").id
        shadow = space.internal_path + b"/shadows/" + node_id[:2].encode() + b"/" + node_id.encode()
        assert open(shadow, "rb").read() == b"third" * 1000
        os.unlink(space.root + b"/g")
        settled(space)
        with space.index.write() as db:
            db.execute("DELETE FROM limbo")
            db.execute("DELETE FROM node WHERE parent IS NULL AND n>1")
        shadows.sweep(space, wanted=True, kept={node_id})
        assert os.path.exists(shadow)
        shadows.sweep(space, wanted=True)
        assert not os.path.exists(shadow)
        space.close()


def test_where_nothing_can_be_cloned_it_is_said(tmp_path):
    with disk(tmp_path, "e", kind="ext4") as made:
        space = make_space(made.place)
        with open(space.root + b"/f", "wb") as file:
            file.write(b"x")
        with pytest.raises(CannotClone):
            shadows.require(space)
        with pytest.raises(CannotClone):
            settled(space)
        assert (
            os.listdir(space.internal_path + b"/shadows/" + os.listdir(space.internal_path + b"/shadows")[0])
            == []
        )
        space.close()


def test_a_space_says_so(make_server, tmp_path):
    """Refused where files can't be cloned, done by the jobs where they can."""
    server = make_server(started=False)
    server.fsd("init")
    with disk(tmp_path, "b", kind="btrfs") as made, disk(tmp_path, "e", kind="ext4") as plain:
        for where, name in ((made.place / "tree", "clones"), (plain.place / "tree", "plain")):
            where.mkdir()
            server.fsd("space", "adopt", str(where), "--name", name)
        refused = server.run("space", "set", "plain", "--direct-versions", "on")
        assert refused.returncode == 1 and "cannot clone" in refused.stderr
        server.fsd("space", "set", "clones", "--direct-versions", "on")
        server.start()
        path = made.place / "tree/f"
        path.write_bytes(b"one" * 1000)
        whole = "tree/.fsd/shadows/*/" + "[0-9a-f]" * 32  # not the one that is being made, which ends in .new
        wait_for(lambda: list(made.place.glob(whole)), timeout=60, what="a shadow")
        path.write_bytes(b"two" * 1000)
        (found,) = server.space_dav(server.space("clones")).propfind(b"f", depth=0)
        meta = server.dav(f"/dav/meta/{found.id}")
        wait_for(lambda: len(meta.propfind(b"v")) == 2, timeout=60, what="a version")
        assert meta.get(meta.propfind(b"v")[1].path) == b"one" * 1000
        server.stop()
