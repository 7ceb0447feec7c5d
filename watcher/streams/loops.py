"""What is the same for each event loop that aiokafka runs on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

log = logging.getLogger(__name__)


def quiet(loop: asyncio.AbstractEventLoop) -> None:
    """Tasks that aiokafka starts and forgets are no news of their own: what fails in them is met by the calls that
    are awaited here, and said there. asyncio would log each as an error when it is collected."""
    loop.set_exception_handler(_left_behind)


def _left_behind(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.info("left behind by aiokafka: %s", context.get("exception") or context["message"])
