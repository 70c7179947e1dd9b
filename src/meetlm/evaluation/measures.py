"""What can be measured on the text of a completion alone: ROUGE, lengths, how much is copied and what is made up.

Each function takes columns, one entry a cell, and returns one. ``None`` stands where a value is not defined, never for
a bad one: an empty completion has 0 words, a ROUGE of 0 and nothing made up, but no share of copied words. The paper
reports ROUGE (section 4.3) and shows copying and hallucination by example only (section 4.7, appendix B).

The words of all but ROUGE are letters and digits of any script. ROUGE, names and numbers written as words are English.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from meetlm.data.example import Prompt

Column = list[float | None]

ROUGES = ("rouge-1", "rouge-2", "rouge-l", "rouge-avg")
"""What :func:`rouge` returns, ``rouge-avg`` being the mean of the others."""
LENGTHS = ("words", "characters")
"""Whose ratio to the baseline's is told too."""
NO_CHOSEN = "held-out rows without a chosen reply: ROUGE and length-ratio are not defined for their prompts"
"""What the problem is called that names such rows."""
MEASURES: dict[str, tuple[str, bool | None]] = {
    "rouge-1": ("ROUGE-1 F1 against the chosen reply: words in common, in [0, 1]", True),
    "rouge-2": ("ROUGE-2 F1 against the chosen reply: pairs of words in common, in [0, 1]", True),
    "rouge-l": ("ROUGE-L F1 against the chosen reply: longest common subsequence of words, in [0, 1]", True),
    "rouge-avg": ("mean of ROUGE-1, ROUGE-2 and ROUGE-L F1, in [0, 1]", True),
    "words": ("length in words", None),
    "characters": ("length in characters", None),
    "length-ratio": ("words, divided by those of the chosen reply", None),
    "coverage": ("share of words that stand in fragments of the prompt (Grusky et al., 2018), in [0, 1]", None),
    "density": ("mean length, in words, of the fragment of the prompt that a word stands in", None),
    "numbers-absent": ("distinct numbers that the prompt does not have", False),
    "names-absent": ("distinct capitalised words, not at a sentence's start, that the prompt does not have", False),
}
"""For each measure of :func:`text_measures` a line for readers, and whether more is better (``None``: neither is)."""

_WORD = re.compile(r"\w+(?:['’]\w+)*")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)|\d+(?:\.\d+)?")
_LIST_MARK = re.compile(r"^\s*\d+[.)](?=\s)", re.MULTILINE)
_ENDS = frozenset(".!?:;…\n")
_BETWEEN = frozenset(" \t\r\"'“”‘’()[]*•#>-")  # may stand between a sentence's end and the next one's first word
_OPENING = frozenset("\"'“‘")
_SELF = re.compile(r"I(?:['’](?:m|ve|d|ll|s))?", re.IGNORECASE)
_POSSESSIVE = re.compile(r"['’]s$", re.IGNORECASE)


def text_measures(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    chosen: Sequence[str | None],
    *,
    stemmer: bool = False,
) -> dict[str, Column]:
    """Return every measure of :data:`MEASURES` by name, in its order, one value a cell.

    Args:
        prompts: What each completion answers.
        completions: As many.
        chosen: The preferred reply; ``None`` where the data have none.
        stemmer: As in :func:`rouge`.
    """
    found = rouge(completions, chosen, stemmer=stemmer)
    found |= {"words": words(completions), "characters": characters(completions)}
    found["length-ratio"] = length_ratio(completions, chosen)
    found["coverage"], found["density"] = coverage_and_density(prompts, completions)
    found["numbers-absent"] = _absent(numbers_absent, prompts, completions)
    found["names-absent"] = _absent(names_absent, prompts, completions)
    return found


def rouge(completions: Sequence[str], chosen: Sequence[str | None], *, stemmer: bool = False) -> dict[str, Column]:
    """Return F1 of ROUGE-1, 2 and L and their mean, in [0, 1], against the chosen replies (Lin, 2004).

    By the package ``rouge-score``: words are runs of a-z and 0-9 in lower case, so text in other scripts has none.
    ROUGE-L takes a whole text as one sequence.

    Args:
        completions: One a cell. One without a word gets 0.
        chosen: As many; the value is ``None`` where there is none, or it has no word.
        stemmer: Whether words are stemmed (Porter) first. The paper does not say; off is the default of the packages
            ``rouge-score`` and ``evaluate``.
    """
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=stemmer)
    found: dict[str, Column] = {name: [] for name in ROUGES}
    for completion, reference in zip(completions, chosen, strict=True):
        if reference is None or not re.search("[a-z0-9]", reference.lower()):
            row: tuple[float | None, ...] = (None,) * len(ROUGES)
        else:
            scores = scorer.score(reference, completion)
            each = [float(scores[kind].fmeasure) for kind in kinds]
            row = (*each, sum(each) / len(each))
        for column, value in zip(found.values(), row, strict=True):
            column.append(value)
    return found


def words(completions: Sequence[str]) -> Column:
    """Return lengths in words: what white space separates."""
    return [float(len(one.split())) for one in completions]


def characters(completions: Sequence[str]) -> Column:
    """Return lengths in characters, without white space at either end."""
    return [float(len(one.strip())) for one in completions]


def length_ratio(completions: Sequence[str], chosen: Sequence[str | None]) -> Column:
    """Return words divided by those of the chosen reply; ``None`` where there is none, or it has no word."""
    pairs = zip(completions, chosen, strict=True)
    return [len(one.split()) / len(other.split()) if other and other.split() else None for one, other in pairs]


def coverage_and_density(prompts: Sequence[Prompt], completions: Sequence[str]) -> tuple[Column, Column]:
    """Return extractive coverage and density (Grusky, Naaman and Artzi, 2018, "Newsroom", section 4.1).

    With F the fragments of a completion that stand in its prompt too (:func:`fragments`) and |S| its words: coverage
    is Σ|f| / |S|, the share of words that are in a fragment; density is Σ|f|² / |S|. A copy of n words has coverage 1
    and density n. Words are compared in lower case, and punctuation is none (theirs are spaCy's tokens).

    Returns:
        Both columns; ``None`` for a completion without a word.
    """
    coverage: Column = []
    density: Column = []
    for prompt, completion in zip(prompts, completions, strict=True):
        own = _words(completion)
        lengths = fragments(_words(prompt.text()), own)
        coverage.append(sum(lengths) / len(own) if own else None)
        density.append(sum(n * n for n in lengths) / len(own) if own else None)
    return coverage, density


def fragments(article: Sequence[str], summary: Sequence[str]) -> list[int]:
    """Return the lengths of the fragments of ``summary`` that stand in ``article``, in order, found greedily.

    The procedure F(A, S) of Grusky et al. (2018), to the letter: at each word of the summary the longest match is taken
    and stepped over, and in the article the search goes on behind the end of a match.
    """
    places: dict[str, list[int]] = {}
    for place, word in enumerate(article):
        places.setdefault(word, []).append(place)
    found: list[int] = []
    at = 0
    while at < len(summary):
        longest = behind = 0
        for place in places.get(summary[at], ()):
            if place < behind:
                continue
            length = 1
            while (
                at + length < len(summary)
                and place + length < len(article)
                and summary[at + length] == article[place + length]
            ):
                length += 1
            longest, behind = max(longest, length), place + length
        if longest:
            found.append(longest)
        at += max(longest, 1)
    return found


def numbers_absent(prompt: Prompt, completion: str) -> list[str]:
    """Return the distinct numbers of a completion that its prompt does not have, in order.

    A number is a run of digits with its decimals; commas between thousands do not count, nor do zeros at the end of
    decimals: ``$5.00`` is ``5``, ``40,000`` is ``40000``. Numbers at the start of a line that count a list (``1.``,
    ``2)``) are none, and a number in words is not seen.
    """
    known = set(_numbers(prompt.text()))
    return list(dict.fromkeys(one for one in _numbers(_LIST_MARK.sub("", completion)) if one not in known))


def names_absent(prompt: Prompt, completion: str) -> list[str]:
    """Return the distinct names of a completion that its prompt does not have, in order.

    A name is taken to be a word that starts with a capital letter, is not the first of a sentence and is no form of
    ``I``. The prompt has it if the word stands there in any case, with or without a possessive 's. It is a rough
    count: a name at the start of a sentence is not seen, and a word in capitals for stress is taken for one.
    """
    known = {_bare(word) for word in _words(prompt.text())}
    names: dict[str, str] = {}
    for match in _WORD.finditer(completion):
        word = match.group()
        if not word[0].isupper() or _SELF.fullmatch(word) or _starts_sentence(completion, match.start()):
            continue
        if (bare := _bare(word.lower())) not in known:
            names.setdefault(bare, _POSSESSIVE.sub("", word))
    return list(names.values())


def _starts_sentence(text: str, at: int) -> bool:
    """Whether a word is the first of the text, of a line, behind one of . ! ? : ; … or in quotes."""
    quoted = at > 1 and text[at - 1] in _OPENING and text[at - 2].isspace()
    while at and text[at - 1] in _BETWEEN:
        at -= 1
    return quoted or not at or text[at - 1] in _ENDS


def _absent(find: Callable[[Prompt, str], list[str]], prompts: Sequence[Prompt], completions: Sequence[str]) -> Column:
    return [float(len(find(prompt, one))) for prompt, one in zip(prompts, completions, strict=True)]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _numbers(text: str) -> Iterator[str]:
    for number in _NUMBER.findall(text):
        whole, _, decimals = number.replace(",", "").partition(".")
        decimals = decimals.rstrip("0")
        yield (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")


def _bare(word: str) -> str:
    return _POSSESSIVE.sub("", word)
