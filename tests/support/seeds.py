"""Seeds of random tests: the same in each run, so that a run fails for what was changed; others on request."""

from __future__ import annotations

import random

import pytest

USUAL = 20_261_201


def seed_of(config: pytest.Config) -> int:
    """`--seed N`: N; with `--big` or `--random` another one each time; else always the same. A test prints it."""
    given = config.getoption("--seed")
    if given is not None:
        return int(given)
    return random.SystemRandom().randrange(1 << 30) if explores(config) else USUAL


def explores(config: pytest.Config) -> bool:
    """Whether the run is to find what nobody has seen yet."""
    return bool(config.getoption("--big") or config.getoption("--random"))
