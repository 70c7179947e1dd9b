"""Tables of implementations by name: a new control, objective or source is one file with one registered class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from meetlm.config.errors import ConfigError, nearest

T = TypeVar("T")


class Registry(Generic[T]):
    """A named table of implementations of one interface.

    Args:
        entry_name: Noun for an entry in messages, such as ``control``.
    """

    def __init__(self, entry_name: str) -> None:
        self.entry_name = entry_name
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its class or function as ``name``."""

        def add(entry: T) -> T:
            assert name not in self._entries, f"two {self.entry_name}s are called {name!r}"
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise ConfigError(f"unknown {self.entry_name} {name!r}{nearest(name, self._entries)}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
