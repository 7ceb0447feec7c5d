"""Rules for every test: no unexpected WARNING in a log, nothing left to the garbage collector, no skip that
isn't listed.

A test that provokes a warning says so:  `def test_x(allow_log): allow_log("regex of the message")`.
Reasons for skips are listed in `tests/support/skips.py`; under `scripts/test` any other one fails the
run.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
import pytest

from tests.support.isolation import own_mounts
from tests.support.logwatch import LogWatch
from tests.support.seeds import explores
from tests.support.skips import allowed

pytest_plugins = ["tests.support.fixtures", "tests.support.kafka.shared"]

_tier_seconds: dict[str, float] = defaultdict(float)
_tier_tests: dict[str, int] = defaultdict(int)
_bad_skips: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    """A shell that starts a test run in the background has it ignore ctrl-C, and all that the tests start with it.
    Mounts of a run that is killed end with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    own_mounts()
    # A loaded machine is slow, not wrong.
    hypothesis.settings.register_profile("usual", deadline=None, derandomize=not explores(config))
    hypothesis.settings.load_profile("usual")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--big", action="store_true", help="real trees of tens of thousands of files, long histories"
    )
    parser.addoption(
        "--seed", type=int, default=None, help="seed of the random histories (printed by each run)"
    )
    parser.addoption(
        "--random", action="store_true", help="other random histories and examples than the usual ones"
    )
    parser.addoption("--seconds", type=float, default=None, help="how long each random history runs")


@pytest.fixture(autouse=True)
def _log_watch(request: pytest.FixtureRequest) -> Iterator[LogWatch]:
    watch = LogWatch()
    root = logging.getLogger()
    root.addHandler(watch)
    try:
        yield watch
    finally:
        root.removeHandler(watch)
    gc.collect()
    if lines := watch.unexpected():
        pytest.fail(
            "unexpected log messages (expect them with allow_log):\n" + "\n".join(lines), pytrace=False
        )


@pytest.fixture
def allow_log(_log_watch: LogWatch) -> Callable[[str], None]:
    """allow_log(REGEX): log messages matching it are expected in this test."""
    return _log_watch.allow


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What is marked `root` is skipped for other users; what is big may take long."""
    if config.getoption("--big"):
        for item in items:
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(3600))
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs root"))


def pytest_collection_finish() -> None:
    """What is loaded by now stays, so that the collection after each test looks at what the test made alone."""
    gc.collect()
    gc.freeze()


def _tier(nodeid: str) -> str:
    parts = nodeid.split("/")
    return parts[1] if len(parts) > 2 else parts[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    tier = _tier(report.nodeid)
    _tier_seconds[tier] += report.duration
    _tier_tests[tier] += report.when == "call"
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        if not allowed(reason):
            _bad_skips.append(f"{report.nodeid}: {reason}")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if len(_tier_seconds) > 1 or os.environ.get("FSD_TEST_STRICT"):
        terminalreporter.section("time of each tier")
        for tier, seconds in _tier_seconds.items():
            terminalreporter.write_line(f"{tier:14} {_tier_tests[tier]:5d} tests {seconds:8.1f} s")
    if _bad_skips and os.environ.get("FSD_TEST_STRICT"):
        terminalreporter.section("skips that are not listed in tests/support/skips.py", red=True)
        for line in _bad_skips:
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if _bad_skips and os.environ.get("FSD_TEST_STRICT") and exitstatus == 0:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture
def stopwatch() -> Callable[[], float]:
    """Seconds since the test began."""
    started = time.monotonic()
    return lambda: time.monotonic() - started
