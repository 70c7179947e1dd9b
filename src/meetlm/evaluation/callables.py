"""Scorers: Python functions of a prompt and a completion, named as ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

from meetlm.config.errors import ConfigError, nearest
from meetlm.config.reporter import SILENT, Reporter
from meetlm.data.example import Prompt
from meetlm.evaluation.outcomes import Column
from meetlm.evaluation.record import Problem


class CallableScorer:
    """Scores completions with a function.

    The function has the parameters ``(prompt, completion)`` and returns a number, or ``None`` for no score. A function
    with the attribute ``batch = True`` has the parameters ``(prompts, completions)``, both lists, and returns a list of
    numbers. A parameter ``chosen`` receives the preferred reply (or a list of replies), ``None`` if the data have
    none. A prompt is text, or messages with ``role`` and ``content``. The attribute ``higher = False`` means that
    lower is better.

    Args:
        name: ``module:function``.
        function: The function.

    Attributes:
        description: First line of the function's docstring, without its full stop; its name without a docstring.
        higher_is_better: Whether higher is better.

    Raises:
        ConfigError: The function cannot be called with these arguments.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        self.name, self.function = name, function
        self.batch = bool(getattr(function, "batch", False))
        self.higher_is_better = bool(getattr(function, "higher", True))
        self.description = (inspect.getdoc(function) or name).splitlines()[0].removesuffix(".")
        self._takes_chosen = _takes_chosen(name, function)

    def score(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[str],
        chosen: Sequence[str | None],
        names: Sequence[str],
        *,
        reporter: Reporter = SILENT,
    ) -> tuple[Column, list[Problem]]:
        """Return the function's value of each completion, and the rows without a finite value.

        Args:
            prompts: The prompt of each completion.
            completions: The completions.
            chosen: The preferred reply to each prompt, or ``None``.
            names: Name of each row in problems and errors.
            reporter: Not used, since a function shows its own progress.

        Returns:
            Values, ``None`` if the function returned ``None``, NaN or infinity; and problems that name these rows.

        Raises:
            ConfigError: The function raised an exception, or did not return (enough) numbers.
        """
        assert len(prompts) == len(completions) == len(chosen), "one prompt and one chosen reply per completion"
        json_prompts = [prompt.to_json() for prompt in prompts]
        if self.batch:
            results = self._call("all rows", json_prompts, list(completions), list(chosen))
            if isinstance(results, str) or not hasattr(results, "__iter__"):
                raise ConfigError(f"scorer {self.name}: returned {_shown(results)}; expected a list of numbers")
            results = list(results)
            if len(results) != len(names):
                counts = f"returned {len(results)} values; expected {len(names)}, one per row"
                raise ConfigError(f"scorer {self.name}: {counts}")
        else:
            results = [self._call(*row) for row in zip(names, json_prompts, completions, chosen, strict=True)]
        rows = [(name, self._number(name, result)) for name, result in zip(names, results, strict=True)]
        missing = [name for name, value in rows if value is None]
        not_finite = [name for name, value in rows if value is not None and not math.isfinite(value)]
        problems = [Problem("returned None", missing), Problem("returned NaN or infinity", not_finite)]
        return (
            [None if value is None or not math.isfinite(value) else value for _, value in rows],
            [problem for problem in problems if problem.examples],
        )

    def _call(self, name: str, prompt: object, completion: object, chosen: object) -> Any:
        try:
            return self.function(prompt, completion, **({"chosen": chosen} if self._takes_chosen else {}))
        except Exception as error:
            raise ConfigError(f"scorer {self.name}: {name}: {type(error).__name__}: {error}") from error

    def _number(self, name: str, result: object) -> float | None:
        if result is None:
            return None
        try:
            if isinstance(result, SupportsFloat):  # numbers of numpy and torch too; text has no __float__
                return float(result)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # such as an array of several numbers
            pass
        raise ConfigError(f"scorer {self.name}: {name}: returned {_shown(result)}; expected a number or None")


def load_scorer(name: str) -> CallableScorer:
    """Return the scorer named ``module:function``.

    The current folder is searched last; it stays in ``sys.path`` for later imports of the module.

    Raises:
        ConfigError: There is no such module or function, the module cannot be imported, or the function cannot be
            called with a prompt and a completion.
    """
    module_name, colon, function_name = name.partition(":")
    if not colon or not function_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ConfigError(f"scorer {name!r}; expected module:function, such as my_scorers:brevity")
    if (working_folder := os.getcwd()) not in sys.path:
        sys.path.append(working_folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        is_missing = isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}.")
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"scorer {name}: no module {module_name!r} is installed or in the current folder ({working_folder})"
            if is_missing
            else f"scorer {name}: module {module_name!r} cannot be imported: {reason}"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(
            f"scorer {name}: {module_name!r} has no function {function_name!r}{nearest(function_name, public)}"
        )
    return CallableScorer(name, function)


def _takes_chosen(name: str, function: Callable[..., Any]) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built-in functions may have none
        return False
    takes_chosen = "chosen" in signature.parameters
    try:
        signature.bind("", "", **({"chosen": None} if takes_chosen else {}))
    except TypeError as error:
        raise ConfigError(
            f"scorer {name}: has parameters {signature}; expected (prompt, completion), and optionally chosen"
        ) from error
    return takes_chosen


def _shown(value: object) -> str:
    text = repr(value)
    return f"{text[:60]}{'…' if len(text) > 60 else ''} ({type(value).__name__})"
