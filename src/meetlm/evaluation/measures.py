"""Measures of a completion's text: ROUGE, lengths, words copied from the prompt, names and numbers it does not have.

``None`` means that a measure is not defined, never that a value is bad: an empty completion has 0 words, a ROUGE of 0
and no absent names, but no share of copied words. The paper reports ROUGE (section 4.3) and shows copying and
hallucination by example (section 4.7, appendix B).

A word is a run of letters and digits of any script. In scripts that do not separate words (Chinese, Japanese, Thai and
others) every character counts as a word. For English, ROUGE's words are those of the package ``rouge-score``.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import regex

from meetlm.data.example import Prompt
from meetlm.evaluation.outcomes import Column

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

ROUGES = ("rouge-1", "rouge-2", "rouge-l", "rouge-avg")
"""``rouge-avg`` is the mean of the others."""
_ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
LENGTHS = ("words", "characters")
"""Measures whose ratio to the baseline is reported too."""
NO_CHOSEN = "held-out rows without a chosen reply: ROUGE and length-ratio are not defined for their prompts"
"""Name of the problem that lists such rows."""
MEASURES: dict[str, tuple[str, bool | None]] = {
    "rouge-1": ("ROUGE-1 F1 against the chosen reply: words in common, in [0, 1]", True),
    "rouge-2": ("ROUGE-2 F1 against the chosen reply: pairs of words in common, in [0, 1]", True),
    "rouge-l": ("ROUGE-L F1 against the chosen reply: longest common subsequence of words, in [0, 1]", True),
    "rouge-avg": ("mean of ROUGE-1, ROUGE-2 and ROUGE-L F1, in [0, 1]", True),
    "words": ("length in words (in characters for scripts without spaces)", None),
    "characters": ("length in characters", None),
    "length-ratio": ("words, divided by the words of the chosen reply", None),
    "coverage": ("share of words that are in fragments copied from the prompt (Grusky et al., 2018), in [0, 1]", None),
    "density": ("mean length, in words, of the copied fragment that a word is in", None),
    "numbers-absent": ("distinct numbers that are not in the prompt", False),
    "names-absent": ("distinct capitalised words, not at the start of a sentence, that are not in the prompt", False),
}
"""For each measure of :func:`text_measures` a description, and whether higher is better (``None``: neither is)."""

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
"""Scripts that do not separate words."""
_LETTER = rf"[[\p{{L}}\p{{Nd}}]--[{_UNSPACED}]]"
_TOKEN = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|{_LETTER}(?:{_LETTER}|\p{{M}})*", regex.V1)
_WORD = regex.compile(
    rf"[{_UNSPACED}]\p{{M}}*|[[\w]--[{_UNSPACED}]]+(?:['’][[\w]--[{_UNSPACED}]]+)*", regex.V1 | regex.UNICODE
)
_CHUNK = regex.compile(rf"[{_UNSPACED}]\p{{M}}*|[^\s{_UNSPACED}]+", regex.V1)
_HAS_LETTER_OR_DIGIT = regex.compile(r"[\p{L}\p{N}]")
_NUMBER = regex.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!,?\d)|\d+(?:\.\d+)?")
_LIST_MARK = regex.compile(r"^\s*\d+[.)](?=\s)", regex.MULTILINE)
_SENTENCE_ENDS = frozenset(".!?:;…\n")
_BETWEEN_SENTENCES = frozenset(" \t\r\"'“”‘’()[]*•#>-")
"""Characters that may stand between the end of a sentence and the first word of the next."""
_OPENING_QUOTES = frozenset("\"'“‘")
_FIRST_PERSON = regex.compile(r"I(?:['’](?:m|ve|d|ll|s))?", regex.IGNORECASE)
_POSSESSIVE = regex.compile(r"['’]s$", regex.IGNORECASE)


def text_measures(
    prompts: Sequence[Prompt],
    completions: Sequence[str],
    chosen: Sequence[str | None],
    *,
    stemmer: bool = False,
) -> dict[str, Column]:
    """Return every measure of :data:`MEASURES` by name, in its order, one value per cell.

    Args:
        prompts: The prompt of each completion.
        completions: The completions.
        chosen: The preferred reply to each prompt; ``None`` if the data have none.
        stemmer: Stem English words for ROUGE (Porter). The paper does not specify it; off is the default of
            ``rouge-score`` and ``evaluate``.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(_ROUGE_TYPES, tokenizer=_Tokenizer(stemmer))
    rows = [_measure(*row, scorer) for row in zip(prompts, completions, chosen, strict=True)]
    return {name: [row[name] for row in rows] for name in MEASURES}


def _measure(prompt: Prompt, completion: str, chosen: str | None, scorer: RougeScorer) -> dict[str, float | None]:
    length, chosen_length = num_words(completion), num_words(chosen or "")
    coverage, density = coverage_and_density(prompt, completion)
    return {
        **_rouge(completion, chosen, scorer),
        "words": float(length),
        "characters": float(num_characters(completion)),
        "length-ratio": length / chosen_length if chosen_length else None,
        "coverage": coverage,
        "density": density,
        "numbers-absent": float(len(numbers_absent(prompt, completion))),
        "names-absent": float(len(names_absent(prompt, completion))) if _has_case(completion) else None,
    }


def _rouge(completion: str, chosen: str | None, scorer: RougeScorer) -> dict[str, float | None]:
    """Return F1 of ROUGE-1, 2 and L and their mean, in [0, 1], against the chosen reply (Lin, 2004).

    ``None`` if there is no chosen reply or it has no word; a completion without a word gets 0. ROUGE-L takes a whole
    text as one sequence.
    """
    if chosen is None or not tokenize(chosen):
        return dict.fromkeys(ROUGES)
    scores = scorer.score(chosen, completion)
    values = [float(scores[kind].fmeasure) for kind in _ROUGE_TYPES]
    return dict(zip(ROUGES, [*values, sum(values) / len(values)], strict=True))


def tokenize(text: str) -> list[str]:
    """Return the words of a text in lower case: runs of letters and digits, or characters of scripts without spaces."""
    return [str(token) for token in _TOKEN.findall(unicodedata.normalize("NFC", text).lower())]


class _Tokenizer:
    """The tokenizer that ``rouge-score`` calls."""

    def __init__(self, stemmer: bool) -> None:
        from nltk.stem.porter import PorterStemmer

        self._stemmer = PorterStemmer() if stemmer else None

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text; English words of more than three letters are stemmed."""
        tokens = tokenize(text)
        if self._stemmer is None:
            return tokens
        return [self._stemmer.stem(token) if len(token) > 3 and token.isascii() else token for token in tokens]


def num_words(text: str) -> int:
    """Return the length in words: what white space separates, and single characters of scripts without spaces.

    Punctuation between such characters is not a word.
    """
    chunks = _CHUNK.findall(text)
    is_spaced = not regex.search(rf"[{_UNSPACED}]", text)
    return len(chunks) if is_spaced else sum(bool(_HAS_LETTER_OR_DIGIT.search(chunk)) for chunk in chunks)


def num_characters(text: str) -> int:
    """Return the length in characters, an accent being part of its letter, without white space at either end."""
    return len(unicodedata.normalize("NFC", text.strip()))


def coverage_and_density(prompt: Prompt, completion: str) -> tuple[float | None, float | None]:
    """Return extractive coverage and density (Grusky, Naaman and Artzi, 2018, "Newsroom", section 4.1).

    With F the fragments of a completion that are in its prompt too (:func:`fragments`) and |S| its number of words:
    coverage is Σ|f| / |S|, the share of words that are in a fragment; density is Σ|f|² / |S|. A copy of n words has
    coverage 1 and density n. Words are compared in lower case and without punctuation (the authors use spaCy's tokens).

    Returns:
        ``None`` for a completion without a word.
    """
    words = _words(completion)
    if not words:
        return None, None
    lengths = fragments(_words(prompt.text()), words)
    return sum(lengths) / len(words), sum(n * n for n in lengths) / len(words)


def fragments(article: Sequence[str], summary: Sequence[str]) -> list[int]:
    """Return the lengths of the fragments of ``summary`` that are in ``article``, in order, matched greedily.

    The procedure F(A, S) of Grusky et al. (2018): at each word of the summary the longest match is taken and skipped,
    and the search in the article continues after the end of a match.
    """
    positions: dict[str, list[int]] = {}
    for position, word in enumerate(article):
        positions.setdefault(word, []).append(position)
    lengths: list[int] = []
    start = 0
    while start < len(summary):
        longest = end = 0
        for position in positions.get(summary[start], ()):
            if position < end:
                continue
            matches = takewhile(lambda pair: pair[0] == pair[1], zip(summary[start:], article[position:], strict=False))
            length = sum(1 for _ in matches)
            longest, end = max(longest, length), position + length
        if longest:
            lengths.append(longest)
        start += max(longest, 1)
    return lengths


def numbers_absent(prompt: Prompt, completion: str) -> list[str]:
    """Return the distinct numbers of a completion that are not in its prompt, in order.

    A number is a run of digits with its decimals; commas between thousands and zeros at the end of decimals do not
    matter: ``$5.00`` is ``5``, ``40,000`` is ``40000``. Numbers at the start of a line that count a list (``1.``,
    ``2)``) and numbers written as words are not counted.
    """
    prompt_numbers = set(_numbers(prompt.text()))
    return list(dict.fromkeys(n for n in _numbers(_LIST_MARK.sub("", completion)) if n not in prompt_numbers))


def names_absent(prompt: Prompt, completion: str) -> list[str]:
    """Return the distinct names of a completion that are not in its prompt, in order.

    A name is a word that starts with a capital letter, is not the first of a sentence and is no form of ``I``. The
    prompt has it if the word occurs there in any case, with or without a possessive 's. It is a rough count for
    English: a name at the start of a sentence is missed, and a word in capitals for emphasis is counted.
    """
    prompt_words = {_POSSESSIVE.sub("", word) for word in _words(prompt.text())}
    names: dict[str, str] = {}
    for match in _WORD.finditer(completion):
        word = match.group()
        is_first = _starts_sentence(completion, match.start())
        if not word[0].isupper() or _FIRST_PERSON.fullmatch(word) or is_first:
            continue
        if (name := _POSSESSIVE.sub("", word.lower())) not in prompt_words:
            names.setdefault(name, _POSSESSIVE.sub("", word))
    return list(names.values())


def _starts_sentence(text: str, start: int) -> bool:
    """Whether a word is the first of the text, of a line or of a quotation, or follows . ! ? : ; or … directly."""
    is_quoted = start > 1 and text[start - 1] in _OPENING_QUOTES and text[start - 2].isspace()
    while start and text[start - 1] in _BETWEEN_SENTENCES:
        start -= 1
    return is_quoted or not start or text[start - 1] in _SENTENCE_ENDS


def _has_case(text: str) -> bool:
    """Whether a text is empty of letters or has letters with upper and lower case, so that names can be counted."""
    letters = [character for character in text if character.isalpha()]
    return not letters or any(letter.lower() != letter.upper() for letter in letters)


def _words(text: str) -> list[str]:
    return [str(word) for word in _WORD.findall(text.lower())]


def _numbers(text: str) -> Iterator[str]:
    for number in _NUMBER.findall(text):
        integer, _, decimals = number.replace(",", "").partition(".")
        decimals = decimals.rstrip("0")
        yield (integer.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
