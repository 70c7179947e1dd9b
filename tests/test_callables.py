"""Scorers of the user's own: what they get, what they may return, and how what is wrong is named."""

from __future__ import annotations

import inspect
import re
import sys
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest

from meetlm.config.errors import ConfigError
from meetlm.data.example import Prompt
from meetlm.evaluation.callables import CallableScorer, load_scorer
from meetlm.evaluation.record import Problem

MODULE = '''
import math
import numpy as np

def brevity(prompt, completion):
    """Shorter is better.

    More text.
    """
    return -len(completion)

def is_chosen(prompts, completions, chosen):
    assert all(isinstance(column, list) for column in (prompts, completions, chosen))
    return np.array([float(a == b) for a, b in zip(completions, chosen)])
is_chosen.batch = True

def repeats(prompt, completion, *, chosen=None):
    return np.float32(0.5) if chosen is None else completion.count(chosen)
repeats.higher = False

def odd(prompt, completion):
    return {"nan": math.nan, "inf": math.inf, "none": None}.get(completion, 1.0)

def fails(prompt, completion):
    return 1 / len(completion)

def text(prompt, completion):
    return "3"

def several(prompt, completion):
    return np.zeros(2)

def few(prompts, completions):
    return [1.0]
few.batch = True

def one_number(prompts, completions):
    return 1.0
one_number.batch = True

def wrong(prompt): ...

constant = 3
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of scorers in the folder that the command runs in, found under a name of its own."""
    name = f"scorers_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / f"{name}_broken.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return name


def score(scorer: CallableScorer, completions: list[str], chosen: list[str | None] | None = None) -> list[float | None]:
    return scored(scorer, completions, chosen)[0]


def scored(
    scorer: CallableScorer, completions: list[str], chosen: list[str | None] | None = None
) -> tuple[list[float | None], list[Problem]]:
    names = [f"row {number + 1}" for number in range(len(completions))]
    return scorer.score([Prompt("p")] * len(completions), completions, chosen or ["c"] * len(completions), names)


def test_a_function_of_the_users_own(module: str) -> None:
    scorer = load_scorer(f"{module}:brevity")
    assert score(scorer, ["ab", "", "abc"]) == [-2.0, 0.0, -3.0]
    assert (scorer.description, scorer.higher_is_better) == ("Shorter is better", True)
    assert scorer.name == f"{module}:brevity"


def test_in_batches_and_with_the_chosen_reply(module: str) -> None:
    assert score(load_scorer(f"{module}:is_chosen"), ["a", "b"], ["a", None]) == [1.0, 0.0]
    scorer = load_scorer(f"{module}:repeats")
    assert score(scorer, ["aa", "b"], ["a", None]) == [2.0, 0.5]
    assert not scorer.higher_is_better


def test_non_finite_rewards_are_none_and_counted(module: str) -> None:
    scorer = load_scorer(f"{module}:odd")
    assert scored(scorer, ["nan", "a", "inf", "none", "nan"]) == (
        [None, 1.0, None, None, None],
        [Problem("returned None", ["row 4"]), Problem("returned NaN or infinity", ["row 1", "row 3", "row 5"])],
    )


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("fails", "row 2: ZeroDivisionError: division by zero"),
        ("text", "row 1: returned '3' (str); expected a number or None"),
        ("several", "row 1: returned array([0., 0.]) (ndarray); expected a number or None"),
        ("few", "returned 1 values; expected 2, one per row"),
        ("one_number", "returned 1.0 (float); expected a list of numbers"),
    ],
)
def test_a_function_that_fails_is_named_with_its_row(module: str, function: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"scorer {module}:{function}: {says}")):
        score(load_scorer(f"{module}:{function}"), ["a", ""])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("brevity", "expected module:function"),
        ("{0}:", "expected module:function"),
        ("no.such-module:f", "expected module:function"),
        ("no_such_module:f", "no module 'no_such_module' is installed or in "),
        ("{0}.inner:f", "no module '{0}.inner' is installed or in "),
        ("{0}_broken:f", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("{0}:brevty", "has no function 'brevty'; did you mean 'brevity'?"),
        ("{0}:constant", "has no function 'constant'"),
        ("{0}:wrong", "has parameters (prompt); expected (prompt, completion)"),
    ],
)
def test_a_scorer_that_cannot_be_had(module: str, name: str, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says.format(module))):
        load_scorer(name.format(module))


def test_a_builtin_scorer() -> None:
    """``operator.lt`` has a signature, ``itertools.zip_longest`` does not; both are judged by what they return."""
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(zip_longest)
    scorer = load_scorer("itertools:zip_longest")
    with pytest.raises(ConfigError, match=r"scorer itertools:zip_longest: row 1: returned <.*; expected a number"):
        score(scorer, ["ab"])
    assert score(load_scorer("operator:lt"), ["o", "q"]) == [0.0, 1.0]
    assert score(CallableScorer("x:y", lambda p, c: np.bool_(len(c) > 1)), ["ab", "a"]) == [1.0, 0.0]
