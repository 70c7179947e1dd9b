r"""OpenAI's ``summarize_from_feedback``, part ``comparisons``: two summaries of a post, one preferred.

Reddit rows become the usual TL;DR prompt, as in TRL::

    SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:

CNN/DM rows (with ``info.article``) become ``Article:\n{article}\n\nTL;DR:``. In both,
``\n\n`` inside the post or article becomes ``\n``, as in TRL. The summaries begin with a space. One post
has several rows: the group is ``info.id``.

The hub's split ``validation`` and MEET's evaluation contain both ``valid1``, on which the authors of the data set chose
models, and ``valid2``, which they held out. OpenAI's files mix the splits, so rows of other splits are left out and
counted.
"""

from __future__ import annotations

from meetlm.data.example import Example, Prompt, Turn, as_reply
from meetlm.data.rows import Row

REDDIT = "SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
NEWS = "Article:\n{article}\n\nTL;DR:"


def parse(row: Row) -> Example:
    """Turn a row with ``info``, ``summaries`` and ``choice`` into an example.

    Raises:
        DataError: A field is missing or of another type, there are not two summaries, or ``choice`` is not 0
            or 1.
    """
    info = row.inside("info")
    summaries = row.items("summaries")
    if len(summaries) != 2:
        raise row.error(f"has {len(summaries)} summaries", field="summaries", expected="two")
    choice = row.number("choice")
    if choice not in (0, 1):
        raise row.error(f"is {choice}", field="choice", expected="0 or 1, the index of the better summary")
    return Example.of_pair(
        prompt=Prompt(_prompt(info)),
        chosen=_summary(row, summaries, choice),
        rejected=_summary(row, summaries, 1 - choice),
        group=info.text("id"),
        origin=row.origin,
    )


def in_split(row: Row, split: str) -> bool:
    """Whether the field ``split`` of a row (train, valid1, valid2) is part of ``split``; true without that field."""
    named = row.fields.get("split")
    return named is None or (named == "train") == split.startswith("train")


def _prompt(info: Row) -> str:
    if info.fields.get("article") is not None:
        return NEWS.format(article=_joined(info.text("article")))
    post = _joined(info.text("post"))
    return REDDIT.format(subreddit=info.text("subreddit"), title=info.text("title"), post=post)


def _joined(text: str) -> str:
    return text.replace("\n\n", "\n")


def _summary(row: Row, summaries: list[object], index: int) -> Turn:
    summary, field = summaries[index], f"summaries[{index}]"
    if not isinstance(summary, dict):
        raise row.error("is not an object", field=field, expected="an object with a text")
    return as_reply(row.wrap(field, summary).text("text"))
