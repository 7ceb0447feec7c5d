"""What `run/watcher.json` says of a space. Reads what its threads left; asks no storage and no database."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from watcher.ears import Ear
    from watcher.keeper import Keeper
    from watcher.sources.base import SourceStatus


def told(keeper: Keeper, ear: Ear | None, sources: Sequence[SourceStatus], now: float) -> dict[str, Any]:
    """The whole answer about one space. `now` is monotonic; RuntimeError if a dict changed while it was
    read."""
    age = _oldest(keeper, now)
    hung = _hung(keeper, ear, now)
    counts = {**keeper.drain.counts, "echoes": keeper.drain.echoes.dropped}
    answer: dict[str, Any] = {
        "id": keeper.space.record.id,
        "name": keeper.space.record.name,
        "state": _state(keeper, sources, hung),
        "why": _why(keeper, hung),
        "hung": round(hung, 1),
        "displaced": keeper.displaced,
        "inner_away": [path.decode("utf-8", "replace") for path, _ in keeper.inner_away],
        "source": _kinds(ear),
        "fallback": _fallback(ear),
        "parts": [
            {"path": part.base.decode("utf-8", "replace"), "filesystem": part.fstype, "source": part.kind}
            for part in (ear.parts if ear is not None else ())
        ],
        "lag": round(age, 3),
        "dirty": max(keeper.drain.waiting(), keeper.waiting.hinted),
        "oldest_dirty": round(age, 3),
        "overflows": sum(each.overflows for each in sources),
        "watched": sum(each.watched for each in sources),
        "unwatched": sum(each.unwatched for each in sources),
        "errors": dict(keeper.drain.errors),
        "watch_errors": dict(sum((Counter(each.errors) for each in sources), Counter[str]())),
        "last_error": keeper.drain.last_error,
        "verified_at": keeper.verified_at or None,
        "sweep": None,
        "poll": _poll(sources),
        "stream": _stream(sources, journal=False),
        "journal": _stream(sources, journal=True),
        "passes": counts,
        "latency": latency(list(keeper.drain.latencies)),
        "bytes": keeper.usage,
    }
    if keeper.sweeping and keeper.progress is not None:
        answer["sweep"] = {
            "phase": keeper.progress.phase,
            "looked": keeper.progress.looked,
            "done": keeper.progress.done_dirs,
            "total": keeper.progress.total_dirs,
        }
    return answer


def _stream(sources: Sequence[SourceStatus], *, journal: bool) -> dict[str, Any] | None:
    """Of the storage's log, or of the topic in which hosts tell each other."""
    return next(
        (each.stream for each in sources if each.stream and (each.name == "journal") is journal), None
    )


def _oldest(keeper: Keeper, now: float) -> float:
    """Seconds that the oldest hint has waited: in memory, or in the dirty set behind it."""
    first = keeper.drain.oldest()
    age = max(0.0, now - first) if first is not None else 0.0
    return max(age, keeper.oldest) if keeper.waiting.hinted > keeper.drain.waiting() else age


def _hung(keeper: Keeper, ear: Ear | None, now: float) -> float:
    subjects = [keeper.front, keeper.post, keeper.back, *(held.subject for held in (ear.held if ear else ()))]
    return max(subject.hung(now) for subject in subjects)


def _why(keeper: Keeper, hung: float) -> str:
    return f"Its storage has not answered for {hung:.0f} s." if hung else keeper.why


def _state(keeper: Keeper, sources: Sequence[SourceStatus], hung: float) -> str:
    if hung or not keeper.available:
        return "unavailable"
    # What another host tells is only quicker than what is heard anyway.
    sources = [each for each in sources if each.name != "journal"]
    if not sources or not all(each.ready for each in sources):
        return "starting"
    if any(each.stream is not None and not each.stream["reading"] for each in sources):
        return "disconnected"
    if keeper.sweeping or keeper.gap:
        return "sweeping"
    return "polling" if all(each.name in ("poll", "rctime") for each in sources) else "watching"


def _kinds(ear: Ear | None) -> str:
    """The source of the root first; of filesystems inside it, what differs."""
    if ear is None or not ear.parts:
        return "none"
    return "+".join(dict.fromkeys(part.kind for part in ear.parts))


def _fallback(ear: Ear | None) -> str:
    """Why something better does not hear it."""
    if ear is None:
        return ""
    return "; ".join(dict.fromkeys(part.why for part in ear.parts if part.why))


def _poll(sources: Sequence[SourceStatus]) -> dict[str, float] | None:
    """How old the oldest look at a directory and at a file may be, where it is polled."""
    for each in sources:
        if each.name == "poll":
            return {"directories": round(each.round_seconds, 1), "files": round(each.files_seconds, 1)}
    return None


def latency(samples: list[float]) -> dict[str, float]:
    """Median, 95th percentile and maximum, seconds."""
    if not samples:
        return {}
    samples.sort()
    return {
        "p50": round(samples[len(samples) // 2], 4),
        "p95": round(samples[min(len(samples) - 1, int(len(samples) * 0.95))], 4),
        "max": round(samples[-1], 4),
    }
