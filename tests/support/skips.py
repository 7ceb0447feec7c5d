"""What may be skipped, by the reason that the test gives. Under `scripts/test` any other skip fails the run."""

from __future__ import annotations

import re

ALLOWED: dict[str, str] = {
    r"need(s|ing)? root|takes root": "changes owners, mounts or becomes another user; not as an ordinary user",
    r"right to mount|mounting is not allowed": "containers often forbid mounting, also to root",
    r"ptrace of a child": "containers may forbid tracing; the faults tier then runs on a machine that doesn't",
    r"Ceph cannot be installed": "Debian has its packages, others may not; in CI they are there or the run fails",
    r"needs Apache Kafka": "without Java and Maven there is only librdkafka's mock broker; in CI that fails the run",
    r"max_queued_events": "the kernel's setting can be changed by root on the host only",
}


def allowed(reason: str) -> bool:
    """Whether a skip with this reason is listed."""
    return any(re.search(pattern, reason) for pattern in ALLOWED)
