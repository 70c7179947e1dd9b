"""Which training runs wrote a cell: what intervals over runs are made of."""

from __future__ import annotations

from pathlib import Path

from meetlm.evaluation.answers import Answers, read_answers
from meetlm.evaluation.cells import Cells, line_up
from test_answers import SAMPLING, held_out, written


def trained(name: str, runs: list[str | None], seeds: list[int], folder: Path) -> Answers:
    """Completions of x and y by several training runs, each in its own folder, under the same sampling seeds."""
    places = []
    for number, run in enumerate(runs):
        own = folder / f"{name}{number}"
        own.mkdir()
        rows = [{"prompt": p, "completion": f"{name}{number}{p}{seed}", "seed": seed} for seed in seeds for p in "xy"]
        stated = {"sampling": SAMPLING, **({} if run is None else {"run": run})}
        places.append([written(own / "good.jsonl", rows, **stated)])
    return read_answers(name, places)


def by_replicate(cells: Cells, *systems: str) -> list[int]:
    """The number of the first prompt's cells; the second's are the same."""
    numbers = cells.runs(*systems)
    first, second = (
        [one for one, (place, _) in zip(numbers, cells.cells, strict=True) if place == prompt] for prompt in (0, 1)
    )
    assert first == second
    return first


def test_runs_of_one_system_and_of_two(tmp_path: Path) -> None:
    """Three runs under two seeds each, a baseline of one run with six seeds, another with a run a pair of seeds."""
    several = trained("a", ["r0", "r1", "r2"], [0, 1], tmp_path)
    once = trained("b", ["s"], list(range(6)), tmp_path)
    paired = trained("c", [None, None, None], [0, 1], tmp_path)
    cells = line_up([several, once, paired], held_out("x", "y"))
    assert len(cells.cells) == 12 and cells.clusters == [0] * 6 + [1] * 6
    assert by_replicate(cells, "a") == [0, 0, 1, 1, 2, 2]
    assert by_replicate(cells, "b") == [0] * 6
    assert by_replicate(cells, "c") == [0, 0, 1, 1, 2, 2]  # rows that state no run are told apart by their place
    assert by_replicate(cells, "a", "b") == by_replicate(cells, "a", "c") == [0, 0, 1, 1, 2, 2]
    assert by_replicate(cells, "b", "b") == [0] * 6
    sources = [(one.run, one.source, one.sampling_seed) for one in cells.replicates if one.system == "a"]
    assert sources == [(0, "r0", 0), (0, "r0", 1), (1, "r1", 0), (1, "r1", 1), (2, "r2", 0), (2, "r2", 1)]


def test_runs_that_are_crossed_make_a_number_for_each_pair(tmp_path: Path) -> None:
    """Runs of the system change with every replicate, those of the baseline with every second one."""
    cells = line_up(
        [trained("a", ["r0", "r1", "r2", "r3"], [0], tmp_path), trained("b", ["s0", "s1"], [0, 1], tmp_path)],
        held_out("x", "y"),
    )
    assert by_replicate(cells, "a") == [0, 1, 2, 3] and by_replicate(cells, "b") == [0, 0, 1, 1]
    assert by_replicate(cells, "a", "b") == [0, 1, 2, 3]


def test_files_of_one_run_are_one_run(tmp_path: Path) -> None:
    """A seed a file, in one folder: one training run. The same name in another folder is another run."""
    own, other = tmp_path / "own", tmp_path / "other"
    files = []
    for folder, seed in ((own, 0), (own, 1), (other, 2)):
        folder.mkdir(exist_ok=True)
        rows = [{"prompt": p, "completion": f"{p}{seed}", "seed": seed, "run": "r", "sampling": SAMPLING} for p in "xy"]
        files.append(written(folder / f"{seed}.jsonl", rows))
    cells = line_up([read_answers("a", [[file] for file in files])], held_out("x", "y"))
    assert by_replicate(cells, "a") == [0, 0, 1]
