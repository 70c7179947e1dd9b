"""Whether the Hugging Face hub can be reached."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from threading import Thread

HUB_TIMEOUT = 5.0
"""Seconds after which the hub counts as unreachable; its own client retries for up to a minute."""


@cache
def hub_is_reachable() -> bool:
    """Return whether the hub answers, asked once per process."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    answers: list[object] = []

    def ask() -> None:
        with suppress(Exception):
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT))

    thread = Thread(target=ask, daemon=True)  # the lookup of a host name has no timeout
    thread.start()
    thread.join(HUB_TIMEOUT)
    return bool(answers)
