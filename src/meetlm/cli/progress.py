"""Bars, and the libraries' own chatter turned down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def quiet_libraries() -> None:
    """Keep transformers and datasets from drawing bars of their own; warnings stay."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    datasets.disable_progress_bars()


@contextmanager
def bar(title: str, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """Give a function that counts prompts on a bar, which appears with the first of them."""
    shown: list[tqdm[None]] = []

    def count(number: int) -> None:
        if not shown:
            shown.append(tqdm(desc=title, unit="prompt", disable=quiet))
        shown[0].update(number)

    try:
        yield count
    finally:
        for one in shown:
            one.close()
