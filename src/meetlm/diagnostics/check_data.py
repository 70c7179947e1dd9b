"""The doctor's checks of preference data: what but preference tells the levels apart, and what was dropped.

Knows no model and trains none; lengths are counted by whoever filtered.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meetlm.data.example import PreferenceExample
from meetlm.data.filters import FilterReport, Lengths, prompt_overlap
from meetlm.diagnostics import shortcuts
from meetlm.diagnostics.checks import Check, Status, status_of
from meetlm.diagnostics.intervals import Interval

FORM_WARNING = 0.55
"""A rule of form (length, stock replies) is worth a warning where its whole interval is beyond this. Controls
on human preferences reach accuracies of about 0.65, so 0.05 beyond chance is a third of what is learnt."""

FORM_PROBLEM = 0.80
"""Beyond this the levels *are* that form: people agree with each other on about 0.73 (InstructGPT)."""

WORDS_WARNING = 0.70
"""Words carry preference (a refusal is what harmlessness looks like), so they may predict it about as well as
reward models do. Above that, it is more likely that a template wrote one of the sides."""

WORDS_PROBLEM = 0.90

MOST_PAIRS = 20_000
"""Pairs that the word checks look at: the interval is ± 0.007 there, and more cost only time."""

TOO_LONG_WARNING, TOO_LONG_PROBLEM = 0.10, 0.50
UNFIT_WARNING = 0.05
USUAL_ACCURACY = 0.65
USUAL_INTERVAL = 0.05


def check_data(train: Sequence[PreferenceExample], account: FilterReport, lengths: Lengths) -> list[Check]:
    """Return the checks of the training pairs.

    Args:
        train: The pairs that passed the filters.
        account: The filters' account of them.
        lengths: Token counts, as the filters used them.
    """
    some = train[:MOST_PAIRS]
    return [
        *_dropped(train, account, lengths),
        _prompt(account),
        _length(train, lengths),
        _repeated(train),
        _surface("opening words", "the first three words of a reply", some, shortcuts.opening_features),
        _surface("words", "a bag of words (the bar for a control)", some, shortcuts.word_features),
    ]


def check_test(
    train: Sequence[PreferenceExample], test: Sequence[PreferenceExample], account: FilterReport | None
) -> list[Check]:
    """Return the checks of the held-out pairs.

    Args:
        train: Training pairs.
        test: Held-out pairs, one a prompt; empty where there are none.
        account: The filters' account of ``test``.
    """
    if account is None:
        return [
            Check(
                "held-out pairs",
                "problem",
                "there are none, so nothing would show whether the levels separated",
                0,
                advice="Pass --data.eval_file FILE, --data.holdout N, or a folder that has a test split.",
            )
        ]
    checks = [_interval(len(test)), _overlap(train, test)]
    share, text, status = _too_long(account)
    if status != "ok":
        text = f"{text}, by their prompts alone"
        checks.append(Check("held-out length", status, text, share, advice="Raise data.max_length."))
    return checks


def _dropped(train: Sequence[PreferenceExample], account: FilterReport, lengths: Lengths) -> tuple[Check, Check]:
    share, text, status = _too_long(account)
    advice = "The model would only see short conversations. Raise data.max_length if memory allows."
    too_long = Check("too long", status, text, share, advice="" if status == "ok" else advice)
    looked = account.total - account.beyond_limit
    unfit = sum(tally.count for name, tally in account.dropped.items() if name not in _NOT_UNFIT)
    odd = account.odd.get("contradiction")
    against = odd.count if odd else 0
    status = status_of((unfit + against) / looked > UNFIT_WARNING)
    share = unfit / looked
    text = f"{unfit} of {looked} rows ({share:.1%}) have an empty reply, two equal ones, or stood earlier"
    if against:
        text += f"; {against} contradict an earlier row"
    if account.other_split_rows.count:
        text += f"; {account.other_split_rows.count} beside them are of another split, as they state"
    advice = "Look at them with `meet data`: this much is seldom in a data set that was read as it was meant."
    return too_long, Check("rows", status, text, share, advice="" if status == "ok" else advice)


_NOT_UNFIT = ("too_long", "prompts_differ", "repeated_prompt")


def _too_long(account: FilterReport) -> tuple[float, str, Status]:
    tally = account.dropped.get("too_long")
    looked, count = account.total - account.beyond_limit, tally.count if tally else 0
    share = count / looked
    text = f"{count} of {looked} rows ({share:.1%}) exceed the maximal length and are left out"
    return share, text, status_of(share > TOO_LONG_WARNING, share > TOO_LONG_PROBLEM)


def _prompt(account: FilterReport) -> Check:
    tally = account.dropped.get("prompts_differ")
    looked, count = account.total - account.beyond_limit, tally.count if tally else 0
    text = (
        f"cannot tell the level: both replies of a pair have one prompt ({account.groups} distinct ones; "
        f"{count} of {looked} rows with two different prompts are left out)"
    )
    status = status_of(count / looked > UNFIT_WARNING)
    advice = "" if status == "ok" else "Many rows compare replies to different prompts; is the format right?"
    return Check("prompt", status, text, count / looked, advice=advice)


def _length(train: Sequence[PreferenceExample], lengths: Lengths) -> Check:
    sizes = [lengths(example) for example in train]
    rate = shortcuts.longer_is_chosen([s[1] for s in sizes], [s[2] for s in sizes], [e.group for e in train])
    word = "longer" if rate.value >= 0.5 else "shorter"
    rate = rate if rate.value >= 0.5 else Interval(1 - rate.value, 1 - rate.high, 1 - rate.low)
    advice = (
        f"Good may come to mean {word}. Compare the lengths of completions under both levels, and look at "
        "preference accuracy per token too."
    )
    finding = f"the {word} reply is the chosen one in {rate} of the pairs"
    return Check.of_rate("length", _form(rate), finding, rate, advice)


def _repeated(train: Sequence[PreferenceExample]) -> Check:
    rate, known = shortcuts.repeated_replies(train)
    finding = (
        f"{known} of {len(train)} pairs have a reply that occurs elsewhere too; its side there gives the "
        f"side here in {rate} of all pairs (others count half)"
    )
    advice = "The same replies are always on one side, so a level may come to mean these. Remove the copies."
    return Check.of_rate("stock replies", _form(rate), finding, rate, advice)


def _surface(name: str, what: str, train: Sequence[PreferenceExample], features: Callable[..., set[str]]) -> Check:
    chosen, rejected = [features(e.chosen) for e in train], [features(e.rejected) for e in train]
    rate, good, bad = shortcuts.surface_accuracy(chosen, rejected, [e.group for e in train])
    finding = f"{what}, fitted on the other four fifths, finds the chosen reply in {rate} of the pairs"
    if good and bad:
        shown = [", ".join(repr(name) for name in names) for names in (good, bad)]
        finding += f" (for chosen: {shown[0]}; for rejected: {shown[1]})"
    status = status_of(rate.low > WORDS_WARNING, rate.low > WORDS_PROBLEM)
    advice = "Look for a template or an artefact on one side: the control would learn that, no preference."
    return Check.of_rate(name, status, finding, rate, advice)


def _form(rate: Interval) -> Status:
    return status_of(rate.low > FORM_WARNING, rate.low > FORM_PROBLEM)


def _interval(pairs: int) -> Check:
    half = shortcuts.half_width(pairs, USUAL_ACCURACY)
    needed = shortcuts.prompts_for(USUAL_INTERVAL, USUAL_ACCURACY)
    status = status_of(half > USUAL_INTERVAL, half > USUAL_ACCURACY - 0.5)
    text = (
        f"{pairs}: an accuracy near {USUAL_ACCURACY:g} will be known to ± {half:.3f} "
        f"(± {USUAL_INTERVAL:g} takes {needed}, ± {USUAL_INTERVAL / 2:g} takes "
        f"{shortcuts.prompts_for(USUAL_INTERVAL / 2, USUAL_ACCURACY)})"
    )
    advice = {
        "ok": "",
        "warning": "Hold out more pairs, or do not read much into small differences.",
        "problem": "That is not even enough to tell it from chance: hold out more pairs.",
    }[status]
    return Check("held-out pairs", status, text, half, advice=advice)


def _overlap(train: Sequence[PreferenceExample], test: Sequence[PreferenceExample]) -> Check:
    shared = prompt_overlap(train, test)
    share = len(shared) / len(test)
    gain = share * (1 - USUAL_ACCURACY)
    text = f"{len(shared)} of {len(test)} held-out prompts are in the training data too"
    if not shared:
        return Check("overlap", "ok", text, share)
    lines = ", ".join(str(example.origin.line) for example in shared[:5]) + (", …" if len(shared) > 5 else "")
    text += f" ({'line' if len(shared) == 1 else 'lines'} {lines}); it may lift the accuracy by up to {gain:.3f}"
    # Less than half the interval drowns in it; more changes what a reader concludes.
    status = status_of(True, gain > shortcuts.half_width(len(test), USUAL_ACCURACY))
    return Check("overlap", status, text, share, advice="Take these rows out of one of the two files.")
