"""A scorer of the user's own: any Python function, named as ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

from meetlm.config.errors import ConfigError, nearest
from meetlm.data.example import Prompt
from meetlm.evaluation.record import Problem


class CallableScorer:
    """Scores completions with a function.

    The function gets ``(prompt, completion)`` and returns a number, or ``None`` where it has none. A function with an
    attribute ``batch = True`` gets ``(prompts, completions)``, both lists, and returns as many numbers. One with a
    parameter ``chosen`` gets the preferred reply (a list of them) by that name too, ``None`` where the data have none.
    A prompt is text, or messages with ``role`` and ``content``. An attribute ``higher = False`` says that less is
    better.

    Args:
        name: ``module:function``.
        function: The function.

    Attributes:
        description: First line of its docstring, or its name.
        higher: Whether more is better.
        problems: Of the last call of :meth:`score`: rows without a finite value.

    Raises:
        ConfigError: It cannot be called with what it would get.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.batch = _flag(function, "batch", name, default=False)
        self.higher = _flag(function, "higher", name, default=True)
        self.description = (inspect.getdoc(function) or name).splitlines()[0]
        self.problems: list[Problem] = []
        self._takes_chosen = _takes_chosen(name, function)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        chosen: Sequence[str | None],
        *,
        names: Sequence[str] | None = None,
    ) -> list[float | None]:
        """Return the function's value of each completion.

        Args:
            prompts: One a completion.
            completions: As many.
            chosen: As many.
            names: What :attr:`problems` and errors call the rows; ``row 1`` and so on by default.

        Returns:
            Values; ``None`` where the function returned ``None``, NaN or infinity: each stands in :attr:`problems`.

        Raises:
            ConfigError: The function raised, or returned something else than a number (or too few of them).
        """
        assert len(prompts) == len(completions) == len(chosen), "one prompt and one chosen reply a completion"
        names = [f"row {number + 1}" for number in range(len(prompts))] if names is None else names
        if self.batch:
            found = self._call("all rows", [prompt.to_json() for prompt in prompts], list(completions), list(chosen))
            if isinstance(found, str) or not hasattr(found, "__iter__"):
                raise ConfigError(f"scorer {self.name}: returned {_shown(found)}; expected a list of numbers")
            found = list(found)
            if len(found) != len(names):
                raise ConfigError(f"scorer {self.name}: returned {len(found)} values; expected {len(names)}, one a row")
        else:
            found = [
                self._call(name, prompt.to_json(), *row)
                for name, prompt, *row in zip(names, prompts, completions, chosen, strict=True)
            ]
        values = [self._value(name, one) for name, one in zip(names, found, strict=True)]
        none = [name for name, one in zip(names, values, strict=True) if one is None]
        odd = [name for name, one in zip(names, values, strict=True) if _is_odd(one)]
        self.problems = [
            Problem(f"scorer {self.name}: {what}", len(rows), rows)
            for what, rows in (("returned None", none), ("returned NaN or infinity", odd))
            if rows
        ]
        return [None if _is_odd(one) else one for one in values]

    def _call(self, name: str, prompt: object, completion: object, chosen: object) -> Any:
        try:
            more = {"chosen": chosen} if self._takes_chosen else {}
            return self.function(prompt, completion, **more)
        except Exception as error:
            raise ConfigError(f"scorer {self.name}: {name}: {type(error).__name__}: {error}") from error

    def _value(self, name: str, found: object) -> float | None:
        if found is None:
            return None
        problem = f"scorer {self.name}: {name}: returned {_shown(found)}; expected a number or None"
        # Numbers of numpy and torch too; text that reads as a number has no __float__.
        if not isinstance(found, SupportsFloat):
            raise ConfigError(problem)
        try:
            return float(found)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # an array of several numbers, say
            raise ConfigError(problem) from error


def load_scorer(name: str) -> CallableScorer:
    """Return the scorer that ``module:function`` names.

    The folder that the command runs in is searched too, after all others; it stays in ``sys.path``, for what the module
    imports later.

    Raises:
        ConfigError: There is no such module or function, the module cannot be imported, or the function cannot be
            called with a prompt and a completion.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon or not function_name.isidentifier() or not all(one.isidentifier() for one in module_name.split(".")):
        raise ConfigError(f"scorer {name!r}; expected module:function, such as my_scorers:brevity")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        if missing:
            raise ConfigError(f"scorer {name}: no module {module_name!r}, installed or in {here}") from error
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"scorer {name}: module {module_name!r} cannot be imported: {what}") from error
    function = getattr(module, function_name, None)
    if function is None:
        public = [one for one, value in vars(module).items() if callable(value) and not one.startswith("_")]
        raise ConfigError(f"scorer {name}: {module_name!r} has no {function_name!r}{nearest(function_name, public)}")
    if not callable(function):
        raise ConfigError(f"scorer {name}: {function_name!r} is {_shown(function)}; expected a function")
    return CallableScorer(name, function)


def _takes_chosen(name: str, function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions may have none
        return False
    takes = "chosen" in signature.parameters
    try:
        signature.bind("", "", **({"chosen": None} if takes else {}))
    except TypeError as error:
        raise ConfigError(
            f"scorer {name}: has parameters {signature}; expected (prompt, completion), and chosen if it is needed"
        ) from error
    return takes


def _flag(function: Callable[..., Any], flag: str, name: str, *, default: bool) -> bool:
    value = getattr(function, flag, default)
    if not isinstance(value, bool):
        raise ConfigError(f"scorer {name}: its attribute {flag} is {_shown(value)}; expected True or False")
    return value


def _is_odd(value: float | None) -> bool:
    return value is not None and not math.isfinite(value)


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
