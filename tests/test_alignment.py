"""Which training runs wrote a cell: what intervals over runs are made of."""

from __future__ import annotations

from pathlib import Path

from meetlm.evaluation.alignment import PairedCompletions, align_completions
from meetlm.evaluation.completions import SystemCompletions, read_completions
from test_completion_files import SAMPLING, held_out, written


def trained(name: str, runs: list[str | None], seeds: list[int], folder: Path) -> SystemCompletions:
    """Completions of x and y by several training runs, each in its own folder, under the same sampling seeds."""
    places = []
    for number, run in enumerate(runs):
        run_folder = folder / f"{name}{number}"
        run_folder.mkdir()
        rows = [{"prompt": p, "completion": f"{name}{number}{p}{seed}", "seed": seed} for seed in seeds for p in "xy"]
        stated = {"sampling": SAMPLING, **({} if run is None else {"run": run})}
        places.append([written(run_folder / "good.jsonl", rows, **stated)])
    return read_completions(name, places)


def by_replicate(paired: PairedCompletions, *systems: str) -> list[int]:
    """The number of the first prompt's cells; the second's are the same."""
    numbers = paired.runs(*systems)
    first, second = (
        [number for number, (place, _) in zip(numbers, paired.cells, strict=True) if place == prompt]
        for prompt in (0, 1)
    )
    assert first == second
    return first


def test_runs_of_one_system_and_of_two(tmp_path: Path) -> None:
    """Three runs with two seeds each, a baseline of one run with six seeds, another with one run per pair of seeds."""
    several = trained("a", ["r0", "r1", "r2"], [0, 1], tmp_path)
    once = trained("b", ["s"], list(range(6)), tmp_path)
    paired = trained("c", [None, None, None], [0, 1], tmp_path)
    paired = align_completions([several, once, paired], held_out("x", "y"))
    assert len(paired.cells) == 12 and paired.clusters == [0] * 6 + [1] * 6
    assert by_replicate(paired, "a") == [0, 0, 1, 1, 2, 2]
    assert by_replicate(paired, "b") == [0] * 6
    assert by_replicate(paired, "c") == [0, 0, 1, 1, 2, 2]  # rows without a run are distinguished by their file
    assert by_replicate(paired, "a", "b") == by_replicate(paired, "a", "c") == [0, 0, 1, 1, 2, 2]
    assert by_replicate(paired, "b", "b") == [0] * 6
    sources = [
        (replicate.run, replicate.source, replicate.sampling_seed)
        for replicate in paired.replicates
        if replicate.system == "a"
    ]
    assert sources == [(0, "r0", 0), (0, "r0", 1), (1, "r1", 0), (1, "r1", 1), (2, "r2", 0), (2, "r2", 1)]


def test_runs_that_are_crossed_make_a_number_for_each_pair(tmp_path: Path) -> None:
    """Runs of the system change with every replicate, those of the baseline with every second one."""
    paired = align_completions(
        [trained("a", ["r0", "r1", "r2", "r3"], [0], tmp_path), trained("b", ["s0", "s1"], [0, 1], tmp_path)],
        held_out("x", "y"),
    )
    assert by_replicate(paired, "a") == [0, 1, 2, 3] and by_replicate(paired, "b") == [0, 0, 1, 1]
    assert by_replicate(paired, "a", "b") == [0, 1, 2, 3]


def test_files_of_one_run_are_one_run(tmp_path: Path) -> None:
    """A seed a file, in one folder: one training run. The same name in another folder is another run."""
    first_run, other = tmp_path / "own", tmp_path / "other"
    files = []
    for folder, seed in ((first_run, 0), (first_run, 1), (other, 2)):
        folder.mkdir(exist_ok=True)
        rows = [{"prompt": p, "completion": f"{p}{seed}", "seed": seed, "run": "r", "sampling": SAMPLING} for p in "xy"]
        files.append(written(folder / f"{seed}.jsonl", rows))
    paired = align_completions([read_completions("a", [[file] for file in files])], held_out("x", "y"))
    assert by_replicate(paired, "a") == [0, 0, 1]
