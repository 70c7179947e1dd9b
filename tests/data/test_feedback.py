"""Replies with feedback: what rows state, the levels that follow, and that pairs written another way train the same."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import torch

from meetlm.config.errors import ConfigError, DataError
from meetlm.data.batch import collate
from meetlm.data.example import Example, Origin, Prompt, Rank
from meetlm.data.feedback import parse
from meetlm.data.fitted_levels import (
    FittedLevels,
    fit_levels,
    level_counts,
    merge_prompts,
    num_replies,
    without_level_lines,
)
from meetlm.data.formats import FORMATS
from meetlm.data.rows import Row
from meetlm.data.settings import DataSettings
from meetlm.data.sources import read_examples
from tiny import encoder_of, gradients, pairs, tiny_policy


def example_of(**fields: Any) -> Example:
    return parse(Row({"prompt": "Rice?", "completion": " Yes.", **fields}, Origin("x.jsonl", 7)))


def settings_of(**levels: Any) -> DataSettings:
    return DataSettings(source="feedback", path="x.jsonl", levels=levels)


def scored(values: list[Any], name: str = "score") -> list[Example]:
    return [
        parse(Row({"prompt": f"Rice {n}?", "completion": f" {n}.", name: value}, Origin("x.jsonl", n + 1)))
        for n, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("fields", "feedback"),
    [
        ({"label": True}, {"": "good"}),
        ({"label": "false"}, {"": "bad"}),
        ({"label": " TRUE "}, {"": "good"}),
        ({"label": 0}, {"": "bad"}),
        ({"score": "3.5"}, {"": 3.5}),
        ({"score": 2}, {"": 2.0}),
        ({"level": " fair "}, {"": "fair"}),
        ({"attributes": {"tone": "formal", "helpfulness": "4", "safe": True, "other": None}},
         {"tone": "formal", "helpfulness": 4.0, "safe": "true"}),
        ({"score": ""}, {}),
    ],
)  # fmt: skip
def test_values_are_parsed(fields: dict[str, Any], feedback: dict[str, Any]) -> None:
    (completion,) = example_of(**fields).completions
    assert dict(completion.feedback) == feedback


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "yes"}, "field 'label': is 'yes'; expected true or false"),
        ({"label": 2}, "field 'label': is 2"),
        ({"score": "nan"}, "field 'score': is 'nan'; expected a finite number"),
        ({"score": float("inf")}, "field 'score': is inf"),
        ({"score": True}, "field 'score': is True"),
        ({"score": "high"}, "field 'score': is 'high'"),
        ({"level": 3}, "field 'level': is 3; expected the name of a level; --data.columns score=NAME"),
        ({"level": "3"}, "field 'level': is '3'"),
        ({"attributes": {"tone": "a=b"}}, "field 'attributes.tone': is 'a=b'"),
        ({"attributes": {"tone": "inf"}}, "field 'attributes.tone': is 'inf'; expected a finite number"),
        ({"attributes": 3}, "field 'attributes': is an integer"),
        ({"score": 1, "label": True}, "has several kinds of feedback: label, score"),
        ({}, "has no feedback on the reply"),
        ({"chosen": "a", "rejected": "b"}, "holds a pair; expected --data.source pairs"),
        ({"completions": ["a", "b"], "scores": [1]}, "field 'scores': holds 1 values; expected 2"),
        ({"completions": ["a", "b"], "score": 1}, "field 'score': is one value for several replies"),
        ({"completions": []}, "field 'completions': is an empty list"),
        ({"instruction": "Cook!", "score": 1}, "field 'instruction': looks like a part of the prompt"),
    ],
)
def test_bad_values_are_refused_by_line_and_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        example_of(**fields)
    assert str(caught.value).startswith("x.jsonl:7: ") and message in str(caught.value)


def test_several_replies_in_a_row() -> None:
    ranked = example_of(completions=[" Best.", " Middle.", " Worst."])
    assert [dict(c.feedback)[""] for c in ranked.completions] == [0, -1, -2]
    assert all(isinstance(dict(c.feedback)[""], Rank) for c in ranked.completions)
    labelled = example_of(completions=[" a.", " b."], labels=[False, True])
    assert [dict(c.feedback) for c in labelled.completions] == [{"": "bad"}, {"": "good"}]
    chat = example_of(
        prompt=[{"role": "user", "content": "Hi"}], completion=[{"role": "assistant", "content": "Yo"}], score=1
    )
    assert (chat.prompt.is_chat, chat.replies[0].content) == (True, "Yo")


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_columns_of_attributes_in_every_kind_of_file(ending: str, tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"Rice {n}?",
            "response": f" {n}.",
            "score": n,
            "helpfulness": n % 5,
            "tone": ("formal", "casual")[n % 2],
        }
        for n in range(4)
    ]
    file = tmp_path / f"train.{ending}"
    if ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text(json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows))
    columns = {"completion": "response"}
    settings = DataSettings(source="feedback", path=str(file), columns=columns, attributes="helpfulness,tone")  # type: ignore[arg-type]
    read = read_examples(settings, "train").rows
    assert [dict(e.completions[0].feedback) for e in read][3] == {"helpfulness": 3.0, "tone": "casual"}


def test_scores_become_levels() -> None:
    few = fit_levels(settings_of(), scored([n % 3 for n in range(30)]))
    assert (tuple(few.levels), few.schemes[0].thresholds) == (("q0", "q1", "q2"), (0.5, 1.5))
    many = scored(list(range(50)))
    fitted = fit_levels(settings_of(), many)
    assert level_counts(fitted.levels, fitted.apply(many)) == {f"q{k}": 10 for k in range(5)}
    by_threshold = fit_levels(settings_of(thresholds="10,40", names="low,mid,high"), many)
    assert level_counts(by_threshold.levels, by_threshold.apply(many)) == {"low": 10, "mid": 30, "high": 10}
    first, *_, last = by_threshold.apply(many)
    assert (first.completions[0].weights, last.completions[0].weights) == ((1, 0, 0), (0, 0, 1))
    assert FittedLevels.from_dict(json.loads(json.dumps(by_threshold.to_dict()))) == by_threshold
    assert tuple(fit_levels(settings_of(count=2), many).levels) == ("bad", "good")


@pytest.mark.parametrize(
    ("feedback", "preferred"),
    [
        ({"scores": [1, 5, 3]}, "b"),
        ({"scores": [2, 2, 2]}, None),
        ({"scores": [1, None, 3]}, None),
        ({"labels": [False, True, False]}, None),
        ({}, "a"),
    ],
)
def test_the_preferred_reply_of_a_row(feedback: dict[str, Any], preferred: str | None) -> None:
    row = {"prompt": "Rice?", "completions": ["a", "b", "c"], **feedback}
    example = parse(Row(row, Origin("x.jsonl", 1)))
    assert (example.preferred and example.preferred.content) == preferred
    with pytest.raises(AssertionError, match="only a level scheme orders"):
        _ = example.best_and_worst


def test_replies_that_show_no_level_are_counted() -> None:
    rows = [replace(row, prompt=Prompt(f"Rice {n // 2}?")) for n, row in enumerate(scored([0, 1] * 10 + [2] * 4))]
    merged = merge_prompts(rows)
    fitted = fit_levels(settings_of(scheme="within-prompt"), merged)
    assert num_replies(merged) - num_replies(fitted.apply(merged)) == 4
    assert without_level_lines("x.jsonl", 4)[0].startswith("x.jsonl: 4 replies have no level and are left out")
    assert without_level_lines("x.jsonl", 0) == []


def test_named_levels_have_the_order_of_the_setting() -> None:
    rows = scored(["fair", "poor", "good"] * 10, "level")
    unordered = fit_levels(settings_of(), rows).levels
    assert (tuple(unordered), unordered.attributes[0].is_ordered) == (("fair", "good", "poor"), False)
    ordered = fit_levels(settings_of(names="poor,fair,good"), rows).levels
    assert (tuple(ordered), ordered.attributes[0].is_ordered) == (("poor", "fair", "good"), True)
    with pytest.raises(DataError, match=r"x\.jsonl:3: field 'level': unknown level 'good'; known: fair, poor"):
        fit_levels(settings_of(names="poor,fair"), rows)


@pytest.mark.parametrize(
    ("values", "levels", "message"),
    [
        ([1] * 30, {}, "all scores are 1, so they define no levels"),
        ([0] * 25 + [1] * 5, {}, r"levels with too few rows \(bad: 25, good: 5\).*at least 10 training rows per level"),
        ([0] * 20 + list(range(20)), {"count": 3}, "equal scores leave some of 3 quantile levels empty"),
        (list(range(40)), {"scheme": "named"}, "the feedback is scores, not named levels"),
        (list(range(40)), {"scheme": "within-prompt"}, "no prompt has two replies of different scores"),
        (list(range(40)), {"scheme": "quantile"}, "--data.levels.scheme: unknown scheme 'quantile'; did you mean"),
        (list(range(40)), {"scheme": "thresholds"}, "thresholds requires"),
    ],
)  # fmt: skip
def test_scores_that_define_no_levels_are_refused(values: list[Any], levels: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        fit_levels(settings_of(**levels), scored(values))


def test_names_and_numbers_in_one_attribute_are_refused() -> None:
    rows = [example_of(attributes={"tone": value}) for value in ("formal", 3)]
    with pytest.raises(DataError, match="field 'tone': is 'formal', but the row at x.jsonl:7 has the number 3"):
        fit_levels(settings_of(), rows)


def test_a_row_that_lacks_an_attribute_trains_the_others() -> None:
    rows = [
        parse(Row({"prompt": f"Rice {n}?", "completion": f" {n}.", "attributes": stated}, Origin("x.jsonl", n + 1)))
        for n in range(40)
        for stated in [{"tone": ("casual", "formal")[n % 2]} | ({"score": n // 2 % 2} if n >= 20 else {})]
    ]
    fitted = fit_levels(settings_of(), rows)
    assert tuple(fitted.levels) == ("tone=casual", "tone=formal", "score=bad", "score=good")
    weights = [example.completions[0].weights for example in fitted.apply(rows)]
    assert (weights[1], weights[22]) == ((0, 1, 0, 0), (1, 0, 0, 1))


def rewritten(kind: str) -> list[Example]:
    """Return the examples of :func:`tiny.pairs` as other feedback states them."""
    rows: list[dict[str, Any]] = []
    for number, example in enumerate(pairs(12)):
        prompt = example.prompt.text()
        best, worst = (reply.content for reply in example.replies)
        stated = {
            "labels": [{"label": True}, {"label": "false"}],
            "scores": [{"score": 9 - number}, {"score": "-3.5"}],
            "names": [{"level": "good"}, {"level": "bad"}],
        }
        if kind == "ranks":
            rows.append({"prompt": prompt, "completions": [best, worst]})
        else:
            replies = [
                {"prompt": prompt, "completion": text, **s} for text, s in zip((best, worst), stated[kind], strict=True)
            ]
            rows += replies if number % 2 else replies[::-1]
    return [parse(Row(row, Origin("x.jsonl", n + 1))) for n, row in enumerate(rows)]


@pytest.mark.parametrize("kind", ["labels", "scores", "names", "ranks"])
def test_a_pair_written_as_other_feedback_is_the_same_example(kind: str) -> None:
    """Its batches, losses and gradients are equal exactly."""
    merged = merge_prompts(rewritten(kind))
    fitted = fit_levels(settings_of(scheme="within-prompt" if kind == "scores" else "auto"), merged)
    assert tuple(fitted.levels) == ("bad", "good") and fitted.levels.attributes[0].is_ordered
    examples = fitted.apply(merged)

    def shown(examples: list[Example]) -> list[Any]:
        return [(e.prompt, e.group, [(c.reply, c.weights) for c in e.completions]) for e in examples]

    assert shown(examples) == shown(pairs(12))
    policy = tiny_policy("llama", "lora")
    for form in ("conditional", "pairwise"):
        item = FORMATS[form].item
        sequences, of_pairs = (
            [sequence for example in group for sequence in item(encoder_of(policy), example)]
            for group in (examples, pairs(12))
        )
        assert sequences == of_pairs
        results = []
        for batch in (sequences, of_pairs):
            loss = -policy(collate(batch, policy.layout)["blocks"], len(batch)).sums().sum()
            loss.backward()
            results.append((loss.item(), gradients(policy)))
        (loss, gradient), (pair_loss, pair_gradient) = results
        assert loss == pair_loss and gradient.keys() == pair_gradient.keys() and gradient
        assert all(torch.equal(gradient[name], pair_gradient[name]) for name in gradient)
