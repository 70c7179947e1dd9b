"""Completions from files: what is refused, what is named and counted, and that only the same prompts are compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from meetlm.config.errors import ConfigError, DataError
from meetlm.data.example import Prompt
from meetlm.evaluation.alignment import align_completions
from meetlm.evaluation.completions import SystemCompletions, read_completions
from meetlm.evaluation.judge import choose_prompts

SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 128, "stop": []}
CHAT = [{"role": "user", "content": "Hello"}]


def written(path: Path, rows: Sequence[Mapping[str, Any]], **stated: Any) -> Path:
    path.write_text("".join(json.dumps({**stated, **row}) + "\n" for row in rows), encoding="utf-8")
    return path


def completions_of(name: str, prompts: Sequence[Any], folder: Path, **stated: Any) -> SystemCompletions:
    rows = [{"prompt": prompt, "completion": f"{name} says {number}"} for number, prompt in enumerate(prompts)]
    return read_completions(name, [[written(folder / f"{name}.jsonl", rows, **{"sampling": SAMPLING, **stated})]])


def held_out(*prompts: str) -> dict[str, str | None]:
    return {Prompt(prompt).id: f"chosen of {prompt}" for prompt in prompts}


def test_a_file_from_elsewhere(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c"}, {"prompt": CHAT, "completion": "d"}])
    completions = read_completions("a", [[file]])
    assert (completions.system.run, completions.system.level, completions.system.sampling) == (None, None, None)
    assert [completion.text for completion in completions.by_cell.values()] == ["c", "d"]
    assert {replicate for _, replicate in completions.by_cell} == {(0, 0)}
    assert not completions.problems


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"completion": "c"}, r"a.jsonl:2.*prompt.*is missing"),
        ({"prompt": " \n", "completion": "c"}, r"a.jsonl:2.*prompt.*is empty"),
        ({"prompt": "p"}, r"a.jsonl:2.*completion.*is missing"),
        ({"prompt": "p", "completion": None}, r"a.jsonl:2.*completion.*is null.*a string"),
        ({"prompt": "p", "completion": "c", "seed": "1"}, r"a.jsonl:2.*seed.*is a string"),
        ({"prompt": "p", "completion": "c", "level": "bad"}, r"a.jsonl:2.*level.*\"bad\".*null in .*a.jsonl:1"),
        ({"prompt": "p", "completion": "c", "sampling": SAMPLING}, r"a.jsonl:2.*sampling"),
        ({"prompt": "p", "completion": "c", "level": 2}, r"a.jsonl:2.*level.*is an integer.*a name"),
        ({"prompt": "p", "completion": "c", "run": ["r"]}, r"a.jsonl:2.*run.*is a list.*a string"),
        ({"prompt": "p", "completion": "c", "sampling": 5}, r"a.jsonl:2.*sampling.*is an integer.*an object"),
        ({"prompt": "p", "completion": "c", "sampling": {"top_p": "1"}}, r"a.jsonl:2.*sampling.top_p.*is a string"),
        ({"prompt": "p", "completion": "c", "sampling": {"stop": 5}}, r"a.jsonl:2.*sampling.stop.*a string or a list"),
    ],
)
def test_a_row_that_cannot_be_used(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "c"}, row])
    with pytest.raises(DataError, match=said):
        read_completions("a", [[file]])


def test_duplicates_and_empty_completions_are_counted(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "completion": "one"},
        {"prompt": "q", "completion": " "},
        {"prompt": "p", "completion": "two"},
    ]
    completions = read_completions("a", [[written(tmp_path / "a.jsonl", rows)]])
    assert completions.by_cell[Prompt("p").id, (0, 0)].text == "one"
    again, empty = completions.problems
    assert (again.count, again.examples) == (1, [f"{tmp_path / 'a.jsonl'}:3"])
    assert (empty.count, empty.examples) == (1, [f"{tmp_path / 'a.jsonl'}:2"])


def test_a_problem_stores_every_row_and_shows_five(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{number}", "completion": ""} for number in range(7)]
    (empty,) = read_completions("a", [[written(tmp_path / "a.jsonl", rows)]]).problems
    assert empty.examples == [f"{tmp_path / 'a.jsonl'}:{line}" for line in range(1, 8)] and empty.count == 7
    assert empty.shown_examples == ", ".join([*empty.examples[:5], "…"])


def test_files_of_one_seed_are_replicates(tmp_path: Path) -> None:
    places = [
        [written(tmp_path / f"{n}.jsonl", [{"prompt": "p", "completion": f"c{n}", "run": f"r{n}"}])] for n in range(3)
    ]
    completions = read_completions("a", places)
    texts = {replicate: completion.text for (_, replicate), completion in completions.by_cell.items()}
    assert texts == {(0, 0): "c0", (1, 0): "c1", (2, 0): "c2"}
    assert completions.system.run == "r0, r1, r2"


def test_replicates_with_several_seeds_are_not_split(tmp_path: Path) -> None:
    places = [
        [
            written(
                tmp_path / f"{n}.jsonl",
                [{"prompt": p, "completion": f"{n}{p}{seed}", "seed": seed} for seed in (0, 1) for p in "xyz"],
            )
        ]
        for n in range(2)
    ]
    completions = read_completions("a", places)
    assert len(completions.by_cell) == 12 and not completions.problems
    paired = align_completions([completions], held_out("x", "y", "z"))
    assert [completion.text for completion in paired.completions["a"][:4]] == ["0x0", "0x1", "1x0", "1x1"]


def test_files_of_one_replicate_are_merged(tmp_path: Path) -> None:
    """A run has the completions of its first prompts in one file and those of all in another."""
    first, everything, other = (
        written(
            tmp_path / f"{name}.jsonl", [{"prompt": p, "completion": f"{name if p == 'w' else 'c'}{p}"} for p in of]
        )
        for name, of in (("first", "xw"), ("all", "xyzw"), ("other", "xv"))
    )
    completions = read_completions("a", [[first, everything, other]])
    assert sorted(completion.text for completion in completions.by_cell.values()) == ["cv", "cx", "cy", "cz", "firstw"]
    assert [(problem.count, problem.examples) for problem in completions.problems] == [(1, [f"{everything}:4"])]


def seeded(name: str, seeds: Sequence[int], folder: Path) -> SystemCompletions:
    rows = [{"prompt": p, "completion": f"{name}{p}{seed}", "seed": seed} for seed in seeds for p in "xy"]
    return read_completions(name, [[written(folder / f"{name}.jsonl", rows, sampling=SAMPLING)]])


def test_other_seeds_are_paired_in_their_order(tmp_path: Path) -> None:
    paired = align_completions([seeded("a", [0, 1], tmp_path), seeded("b", [5, 3], tmp_path)], held_out("x", "y"))
    assert paired.cells == [(0, 0), (0, 1), (1, 0), (1, 1)] and not paired.problems
    assert [completion.text for completion in paired.completions["a"]] == ["ax0", "ax1", "ay0", "ay1"]
    assert [completion.text for completion in paired.completions["b"]] == ["bx3", "bx5", "by3", "by5"]


def test_one_replicate_is_compared_with_each(tmp_path: Path) -> None:
    paired = align_completions([seeded("a", [4], tmp_path), seeded("b", [0, 1, 2], tmp_path)], held_out("x", "y"))
    assert [completion.text for completion in paired.completions["a"]] == ["ax4"] * 3 + ["ay4"] * 3
    assert [completion.text for completion in paired.completions["b"]] == ["bx0", "bx1", "bx2", "by0", "by1", "by2"]


def test_two_seeds_and_three_are_refused(tmp_path: Path) -> None:
    systems = [seeded("a", [0, 1], tmp_path), seeded("b", [0, 1, 2], tmp_path)]
    with pytest.raises(ConfigError, match="a lacks 2 of them, such as"):
        align_completions(systems, held_out("x", "y"))
    assert len(align_completions(systems, held_out("x", "y"), only_common=True).cells) == 4


def test_alignment_are_in_the_order_of_the_data(tmp_path: Path) -> None:
    systems = [completions_of("a", ["x", "y", "z"], tmp_path), completions_of("b", ["z", "x", "y"], tmp_path)]
    paired = align_completions(systems, held_out("z", "y", "x"))
    assert [row.prompt for row in paired.prompts] == ["z", "y", "x"]
    assert [row.chosen for row in paired.prompts] == ["chosen of z", "chosen of y", "chosen of x"]
    assert paired.cells == [(0, 0), (1, 0), (2, 0)] and paired.clusters == [0, 1, 2]
    assert [completion.text for completion in paired.completions["b"]] == ["b says 0", "b says 2", "b says 1"]
    assert not paired.problems


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    systems = [completions_of("a", ["x", "y"], tmp_path), completions_of("b", ["x", "z", "w"], tmp_path)]
    with pytest.raises(
        ConfigError, match=r"different prompts.*a lacks 2 of them, such as .*b.jsonl.*b lacks 1 of them"
    ):
        align_completions(systems, held_out("x", "y", "z", "w"))
    paired = align_completions(systems, held_out("x", "y", "z", "w", "v"), only_common=True)
    assert [row.prompt for row in paired.prompts] == ["x"]
    assert sorted(problem.count for problem in paired.problems if "left out for all" in problem.description) == [1, 2]
    assert any(
        "no system has a completion" in problem.description and problem.count == 1 for problem in paired.problems
    )


def test_prompts_that_are_not_held_out(tmp_path: Path) -> None:
    systems = [completions_of("a", ["x", "y"], tmp_path)]
    paired = align_completions(systems, held_out("x"))
    assert [(problem.count, problem.examples) for problem in paired.problems] == [(1, [f"{tmp_path / 'a.jsonl'}:2"])]
    with pytest.raises(ConfigError, match="none of the 2 prompts"):
        align_completions(systems, held_out("v"))


def test_other_prompts_of_a_file_make_systems_no_different(tmp_path: Path) -> None:
    """A file of more than the held-out prompts is compared over these, and the rest is counted."""
    systems = [completions_of("a", ["x", "y"], tmp_path), completions_of("b", ["w", "y", "x", "v"], tmp_path)]
    paired = align_completions(systems, held_out("x", "y"))
    assert [row.prompt for row in paired.prompts] == ["x", "y"]
    assert [completion.text for completion in paired.completions["b"]] == ["b says 2", "b says 1"]
    (left,) = paired.problems
    assert (left.count, sorted(left.examples)) == (2, [f"{tmp_path / 'b.jsonl'}:{line}" for line in (1, 4)])
    with pytest.raises(ConfigError, match="a lacks 1 of them, such as .*b.jsonl:1"):
        align_completions(systems, held_out("x", "y", "w"))


def test_seeds_of_prompts_that_are_not_held_out_do_not_count(tmp_path: Path) -> None:
    rows = [{"prompt": "x", "completion": "c", "seed": 3}, {"prompt": "other", "completion": "c", "seed": 8}]
    systems = [
        read_completions("a", [[written(tmp_path / "a.jsonl", rows, sampling=SAMPLING)]]),
        completions_of("b", ["x"], tmp_path),
    ]
    assert len(align_completions(systems, held_out("x")).cells) == 1


@pytest.mark.parametrize("name", ["temperature", "top_p", "max_new_tokens", "stop"])
def test_other_sampling_is_refused(name: str, tmp_path: Path) -> None:
    other = {**SAMPLING, name: ["\n"] if name == "stop" else 0.5}
    systems = [completions_of("a", ["x"], tmp_path), completions_of("b", ["x"], tmp_path, sampling=other)]
    with pytest.raises(ConfigError, match=f"a was sampled with {name} .* and b with"):
        align_completions(systems, held_out("x"))


def test_unstated_sampling_is_accepted_and_marked(tmp_path: Path) -> None:
    systems = [
        completions_of("a", ["x"], tmp_path, level="good"),
        completions_of("b", ["x"], tmp_path, sampling=None),
        completions_of("c", ["x"], tmp_path, level={"good": 1.5}),
    ]
    paired = align_completions(systems, held_out("x"))
    assert [problem.description.split(":")[0] for problem in paired.problems] == ["b"]
    assert "temperature" in paired.problems[0].description


def test_sampling_is_compared_between_all_that_state_it(tmp_path: Path) -> None:
    systems = [
        completions_of("a", ["x"], tmp_path),
        completions_of("b", ["x"], tmp_path, sampling={"top_p": 1}),
        completions_of("c", ["x"], tmp_path, sampling={**SAMPLING, "temperature": 1.0}),
    ]
    with pytest.raises(ConfigError, match="a was sampled with temperature 0.0 and c with 1.0"):
        align_completions(systems, held_out("x"))


def test_the_same_sampling_may_be_written_otherwise(tmp_path: Path) -> None:
    other = {"temperature": 0, "top_p": 1, "max_new_tokens": 128, "stop": None, "beams": 1}
    systems = [completions_of("a", ["x"], tmp_path), completions_of("b", ["x"], tmp_path, sampling=other)]
    assert not align_completions(systems, held_out("x")).problems


def test_no_prompt_in_common(tmp_path: Path) -> None:
    systems = [completions_of("a", ["x"], tmp_path), completions_of("b", ["y"], tmp_path)]
    with pytest.raises(ConfigError, match="no prompt for which all systems"):
        align_completions(systems, held_out("x", "y"), only_common=True)


def test_the_judges_prompts_stay_when_others_come_or_go() -> None:
    ids = [f"prompt {number}" for number in range(300)]
    chosen = choose_prompts(ids, 128, seed=0)
    assert len(set(chosen)) == 128
    assert choose_prompts(ids[::-1], 128, seed=0) == chosen
    assert len(set(chosen) & set(choose_prompts([*ids, "one more"], 128, seed=0))) >= 127
    assert set(choose_prompts(ids, 128, seed=1)) != set(chosen)
    assert sorted(choose_prompts(ids[:5], 128, seed=0)) == ids[:5]
