"""Bars, and the libraries' own chatter turned down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


def quiet_libraries() -> None:
    """Keep transformers and datasets from drawing bars of their own; warnings stay."""
    import datasets
    import transformers

    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@contextmanager
def bar(title: str) -> Iterator[Callable[[int], None]]:
    """Show a bar that counts; its total is not known beforehand."""
    with tqdm(desc=title, unit="prompt") as shown:
        yield lambda count: None if shown.update(count) else None
