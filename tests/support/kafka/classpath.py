"""Apache Kafka's class path, resolved by Maven and kept in the user's own Maven repository."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

POM = Path(__file__).with_name("pom.xml")
REPOSITORY = Path.home() / ".m2" / "repository"


@functools.cache
def classpath() -> str:
    """The jars, separated by colons; "" where Java or Maven are missing. RuntimeError if Maven fails."""
    if shutil.which("java") is None or shutil.which("mvn") is None:
        return ""
    mark = hashlib.sha256(POM.read_bytes()).hexdigest()[:12]
    kept = REPOSITORY.parent / f"fsd-broker-{mark}.classpath"
    kept.parent.mkdir(parents=True, exist_ok=True)
    with open(kept.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (kept.exists() and all(map(os.path.exists, kept.read_text().split(":")))):
            _resolve(kept)
    return kept.read_text()


def _resolve(target: Path) -> None:
    aside = target.with_suffix(".new")
    command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:build-classpath"]
    command += [f"-Dmdep.outputFile={aside}", "-DincludeScope=runtime"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(
            f"Maven could not resolve Apache Kafka:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        )
    aside.replace(target)
