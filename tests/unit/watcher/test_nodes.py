"""The forest of watched directories."""

from __future__ import annotations

from watcher.nodes import Node, Root, absolute, below, hang, is_above, owner, place, unhang


def forest() -> tuple[Root, Node, Node]:
    root = Root("s", b"/r", (1, 2), 1)
    a, b = Node(None, b"", 2), Node(None, b"", 3)
    hang(a, root, b"a")
    hang(b, a, b"b")
    return root, a, b


def test_a_place_is_the_names_up_to_the_root():
    root, a, b = forest()
    assert place(root) == (root, b"")
    assert place(a) == (root, b"a")
    assert place(b) == (root, b"a/b")
    assert absolute(root, b"a/b") == b"/r/a/b"
    assert absolute(root, b"") == b"/r"
    assert absolute(Root("t", b"/", (0, 0), 9), b"x") == b"/x"


def test_renaming_a_directory_rehangs_one_object():
    root, a, b = forest()
    c = Node(None, b"", 4)
    hang(c, root, b"c")
    assert hang(a, c, b"z") is None
    assert place(b) == (root, b"c/z/b")
    assert root.kids == {b"c": c}


def test_what_stood_at_the_new_name_comes_loose_and_is_answered():
    root, a, b = forest()
    c = Node(None, b"", 4)
    hang(c, root, b"c")
    assert hang(c, root, b"a") is a
    assert place(b) is None
    assert owner(b) is root, "its watches still count for the space"
    assert set(root.kids or ()) == {b"a"}


def test_taken_off_and_hung_up_again():
    root, a, b = forest()
    unhang(a)
    assert place(b) is None
    assert owner(b) is root
    assert root.kids is None
    hang(a, root, b"again")
    assert place(b) == (root, b"again/b")


def test_unhanging_the_root_or_a_loose_node_changes_nothing():
    root, _, _ = forest()
    unhang(root)
    stray = Node(None, b"x", 7)
    unhang(stray)
    assert owner(stray) is None
    assert place(root) == (root, b"")


def test_above_and_below():
    root, a, b = forest()
    assert is_above(a, b)
    assert is_above(a, a)
    assert not is_above(b, a)
    assert set(below(root)) == {root, a, b}
    assert list(below(b)) == [b]
