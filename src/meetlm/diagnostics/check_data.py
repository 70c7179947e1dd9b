"""The doctor's checks of preference data: what besides preference distinguishes the replies, and unusable rows.

Uses no model; the caller counts the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from meetlm.data.example import Example
from meetlm.data.filters import ODDITIES, REASONS, FilterReport, Lengths, prompt_overlap
from meetlm.data.fitted_levels import PAIRS, FittedLevels, merge_prompts
from meetlm.diagnostics import shortcuts
from meetlm.diagnostics.checks import MIN_PROMPTS, Check, Status, share_check, worst_status
from meetlm.diagnostics.intervals import Interval
from meetlm.diagnostics.level_report import STRONG, report_levels

FORM_WARNING = 0.55
"""A rule about form (length, stock replies) is a warning if its whole interval is above this. Controls trained on human
preferences reach accuracies of about 0.65, so 0.05 above chance is a third of what is learnt."""

FORM_PROBLEM = 0.80
"""Above this the levels mostly encode form: people agree with each other on about 0.73 of the pairs (InstructGPT)."""

WORDS_WARNING = 0.70
"""Words carry preference (harmless replies often refuse), so they may predict it about as well as reward models do.
Above that, it is more likely that a template wrote one of the sides."""

WORDS_PROBLEM = 0.90

MAX_PAIRS = 20_000
"""Number of pairs that the word checks read: their interval is ± 0.007, and more pairs only take time."""

TOO_LONG_WARNING, TOO_LONG_PROBLEM = 0.10, 0.50
UNUSABLE_WARNING = 0.05
USUAL_ACCURACY = 0.65
USUAL_INTERVAL = 0.05


def check_data(
    train: Sequence[Example], report: FilterReport, lengths: Lengths, fitted: FittedLevels = PAIRS
) -> list[Check]:
    """Return the checks of the training rows.

    Args:
        train: The rows that passed the filters.
        report: The filters' report on them.
        lengths: Token counts, as the filters used them.
        fitted: Level schemes of the data.
    """
    groups = [example.group for example in train]
    advice = "Only short prompts and replies are trained on. Raise data.max_length."
    rows = [_training_pairs(report), _too_long("too long", report, advice), _unusable(report)]
    checks = [check.with_counts(groups) for check in rows]
    with_levels = fitted.apply(merge_prompts(train))
    pairs = [e for e in with_levels if e.completions[0].weights != e.completions[-1].weights]
    if pairs and fitted.levels.is_scale:
        opening, words = "the first three words of the replies", "all words of the replies (a control should do better)"
        sample = pairs[:MAX_PAIRS]
        checks += [
            _length(pairs, lengths),
            _repeated(pairs),
            _surface("opening words", opening, sample, shortcuts.opening_features),
            _surface("words", words, sample, shortcuts.word_features),
        ]
    return checks if all(example.is_pair for example in train) else checks + _levels(fitted, with_levels, lengths)


def _levels(fitted: FittedLevels, examples: Sequence[Example], lengths: Lengths) -> list[Check]:
    """Return the checks of levels: do attributes predict each other, or the length?"""
    report = report_levels(fitted, examples, lengths)
    return [
        _correlation(
            "level and length",
            f"the level of {name or 'a reply'} and its length",
            value,
            "The model may learn length instead of the level.",
        )
        for name, value in report.with_length.items()
    ] + [
        _correlation("attributes", names, value, "They predict each other: the model can hardly learn them apart.")
        for names, value in report.between.items()
    ]


def _correlation(name: str, variables: str, value: float, advice: str) -> Check:
    status = worst_status(warning=abs(value) > STRONG)
    return Check(name, status, f"{variables} have the correlation {value:+.2f}", value, advice=advice)


def check_test(train: Sequence[Example], test: Sequence[Example], report: FilterReport | None) -> list[Check]:
    """Return the checks of the held-out pairs.

    Args:
        train: Training pairs.
        test: Held-out pairs, one per prompt; empty if there are none.
        report: The filters' report on ``test``.
    """
    if report is None:
        finding = "there are none, so preference accuracy cannot be measured"
        advice = "Pass --data.eval_file FILE, --data.holdout N, or a folder with a test split."
        return [Check("held-out pairs", "problem", finding, 0, advice=advice, rows=0, prompts=0)]
    groups = [example.group for example in test]
    too_long = _too_long("held-out length", report, "Raise data.max_length.", unit="prompts").with_counts(groups)
    return [
        _held_out_pairs(len(test)).with_counts(groups),
        _overlap(train, test).with_counts(groups),
        *([too_long] if too_long.status != "ok" else []),
    ]


def _training_pairs(report: FilterReport) -> Check:
    empty = report.odd.get("empty_prompt")
    num_empty = empty.count if empty else 0
    finding = f"{report.kept} pairs are used for training, with {report.groups} distinct prompts"
    if num_empty:
        finding += f"; the prompt of {num_empty} is empty"
    has_few_prompts, has_many_empty = report.groups < MIN_PROMPTS, num_empty > UNUSABLE_WARNING * report.kept
    advice = f"Use at least {MIN_PROMPTS} prompts, and hundreds to learn a preference."
    if has_many_empty or report.kept >= MIN_PROMPTS:
        advice = "Is the prompt in another column? --data.columns prompt=NAME names it."
    status: Status = "problem" if has_few_prompts or has_many_empty else "ok"
    return Check("training pairs", status, finding, report.kept, advice=advice)


def _checked(report: FilterReport) -> int:
    return report.total - report.beyond_limit


def _too_long(name: str, report: FilterReport, advice: str, unit: str = "rows") -> Check:
    tally = report.dropped.get("too_long")
    rows, count = _checked(report), tally.count if tally else 0
    share = count / rows
    finding = f"{count} of {rows} {unit} ({share:.1%}) exceed data.max_length and are left out"
    status = worst_status(warning=share > TOO_LONG_WARNING, problem=share > TOO_LONG_PROBLEM)
    return Check(name, status, finding, share, advice=advice)


def _unusable(report: FilterReport) -> Check:
    rows = _checked(report)
    separate = ("too_long", "repeated_prompt")
    dropped = {REASONS[name]: tally.count for name, tally in report.dropped.items() if name not in separate}
    odd = {ODDITIES[name]: tally.count for name, tally in report.odd.items() if name != "empty_prompt"}
    share = sum(dropped.values()) / rows
    finding = f"{sum(dropped.values())} of {rows} rows ({share:.1%}) are left out{_listed(dropped)}"
    if odd:
        finding += f"; {sum(odd.values())} are unusual but kept{_listed(odd)}"
    if report.other_split_rows.count:
        finding += f"; {report.other_split_rows.count} rows of another split are not counted"
    status = worst_status(warning=share + sum(odd.values()) / rows > UNUSABLE_WARNING)
    advice = "Look at them with `meet data`: so many suggest that the format (data.source) is wrong."
    return Check("rows", status, finding, share, advice=advice)


def _listed(counts: dict[str, int]) -> str:
    return f" ({'; '.join(f'{reason}: {count}' for reason, count in counts.items())})" if counts else ""


def _length(train: Sequence[Example], lengths: Lengths) -> Check:
    sizes = [lengths(example) for example in train]
    groups = [example.group for example in train]
    chosen, rejected = ([size.replies[index] for size in sizes] for index in (0, -1))
    share = shortcuts.longer_is_chosen(chosen, rejected, groups)
    comparative = "longer" if share.value >= 0.5 else "shorter"
    share = share if share.value >= 0.5 else Interval(1 - share.value, 1 - share.high, 1 - share.low)
    advice = (
        f"The model may learn length instead of the preference: {comparative} would mean good. Compare the lengths of "
        "completions under both levels, and look at preference accuracy per token too."
    )
    finding = f"the {comparative} reply is the chosen one in {share} of the pairs"
    return share_check("length", _form_status(share), finding, share, advice, groups)


def _repeated(train: Sequence[Example]) -> Check:
    share, repeated = shortcuts.repeated_replies(train)
    finding = (
        f"{repeated} of {len(train)} pairs have a reply that occurs in other pairs too; guessing from that reply's "
        f"usual side finds the chosen reply in {share} of all pairs (pairs without such a reply count half)"
    )
    advice = "Some replies are always chosen or always rejected, so a level may learn just these. Remove the copies."
    groups = [example.group for example in train]
    return share_check("stock replies", _form_status(share), finding, share, advice, groups)


def _surface(name: str, features_name: str, train: Sequence[Example], features: Callable[..., set[str]]) -> Check:
    chosen, rejected = ([features(example.best_and_worst[index]) for example in train] for index in (0, 1))
    groups = [example.group for example in train]
    share, for_chosen, for_rejected = shortcuts.surface_accuracy(chosen, rejected, groups)
    finding = f"predicting from {features_name}, cross-validated, finds the chosen one in {share} of the pairs"
    if for_chosen and for_rejected:
        shown = [", ".join(map(repr, names)) for names in (for_chosen, for_rejected)]
        finding += f" (for chosen: {shown[0]}; for rejected: {shown[1]})"
    status = worst_status(warning=share.low > WORDS_WARNING, problem=share.low > WORDS_PROBLEM)
    advice = "Look for a template or an artefact on one side: the control would learn that instead of a preference."
    return share_check(name, status, finding, share, advice, groups)


def _form_status(share: Interval) -> Status:
    return worst_status(warning=share.low > FORM_WARNING, problem=share.low > FORM_PROBLEM)


def _held_out_pairs(pairs: int) -> Check:
    half = shortcuts.half_width(pairs, USUAL_ACCURACY)
    needed, precise = (shortcuts.prompts_for(width, USUAL_ACCURACY) for width in (USUAL_INTERVAL, USUAL_INTERVAL / 2))
    is_hopeless = half > USUAL_ACCURACY - 0.5
    finding = (
        f"{pairs} pairs measure an accuracy near {USUAL_ACCURACY:g} to ± {half:.3f} "
        f"({needed} give ± {USUAL_INTERVAL:g}, {precise} give ± {USUAL_INTERVAL / 2:g})"
    )
    advice = "Hold out more pairs, or do not interpret small differences."
    if is_hopeless:
        advice = "Too few to distinguish it from chance: hold out more pairs."
    status = worst_status(warning=half > USUAL_INTERVAL, problem=is_hopeless)
    return Check("held-out pairs", status, finding, half, advice=advice)


def _overlap(train: Sequence[Example], test: Sequence[Example]) -> Check:
    shared = prompt_overlap(train, test)
    share = len(shared) / len(test)
    gain = share * (1 - USUAL_ACCURACY)
    finding = f"{len(shared)} of {len(test)} held-out prompts are in the training data too"
    if not shared:
        return Check("overlap", "ok", finding, share)
    lines = ", ".join(str(example.origin.line) for example in shared[:5]) + (", …" if len(shared) > 5 else "")
    finding += f" (lines {lines}); this may raise the accuracy by up to {gain:.3f}"
    # A gain of less than half the interval is within noise; a larger one changes the conclusion.
    status = worst_status(warning=True, problem=gain > shortcuts.half_width(len(test), USUAL_ACCURACY))
    return Check("overlap", status, finding, share, advice="Remove these rows from one of the two files.")
