"""Patterns of a search by name."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from fsd.core.find import matcher


def fits(pattern: str, name: str) -> bool:
    """By the book: each star tries every length."""

    @cache
    def rest(p: int, n: int) -> bool:
        if p == len(pattern):
            return n == len(name)
        if pattern[p] == "*":
            return any(rest(p + 1, m) for m in range(n, len(name) + 1))
        return n < len(name) and pattern[p] in ("?", name[n]) and rest(p + 1, n + 1)

    return rest(0, 0)


@given(st.text("ab*?.\n[é", max_size=8), st.text("ab.\n[é", max_size=10))
def test_as_a_shell_would(pattern, name):
    whole = pattern if set(pattern) & set("*?") else f"*{pattern}*"
    assert matcher(pattern)(name.encode()) == fits(whole, name)


def test_many_stars_cost_little():
    """Without care: the number of ways to lay 100 letters into 250."""
    assert not matcher("*a" * 100 + "*é")(b"a" * 250)
    assert not matcher("*a" * 100 + "?" * 60 + "é*")(b"a" * 250)
    assert matcher("É*a" * 2)("éaÉba".encode())
