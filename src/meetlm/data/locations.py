"""Find the rows of a split: in a file, in a folder laid out like a data set on the hub, or on the hub."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from meetlm.config.errors import DataError, nearest
from meetlm.config.hub import hub_is_reachable
from meetlm.data.example import Origin
from meetlm.data.rows import READERS, Row, non_empty, read_file
from meetlm.data.settings import DataSettings

PARQUET_BRANCH = "refs/convert/parquet"
"""Branch of the hub with Parquet copies of data sets whose loading scripts are no longer supported."""


class SplitRows(NamedTuple):
    """The rows of a split, the name of the split, and the file, folder or hub name that they come from."""

    rows: Iterator[Row]
    split: str
    file: str


def find_rows(settings: DataSettings, split: Literal["train", "eval"]) -> SplitRows:
    """Return the rows of a split; they are read lazily.

    ``settings.columns`` renames their columns, and ``settings.attributes`` selects their feedback.

    Raises:
        DataError: The data does not exist; the message says where it was looked for.
    """
    split_rows = _locate(settings, split)
    rows = split_rows.rows
    if settings.columns:
        rows = (row.rename(settings.columns) for row in rows)
    if settings.attributes:
        rows = (row.gather(settings.attributes) for row in rows)
    return split_rows._replace(rows=rows)


def _locate(settings: DataSettings, split: Literal["train", "eval"]) -> SplitRows:
    explicit = settings.train_file if split == "train" else settings.eval_file
    name = settings.train_split if split == "train" else settings.eval_split
    base = None if settings.path is None else Path(settings.path).expanduser()
    has_folder = base is not None and base.is_dir()
    if explicit is not None:
        file = Path(explicit).expanduser()
        file = base / file if base is not None and has_folder else file
        return SplitRows(read_file(file), name, str(file))
    # A file given for the training data contains no held-out data.
    if split == "eval" and not has_folder and (base is None or base.is_file() or settings.train_file is not None):
        raise DataError(
            "no held-out data",
            file=settings.path or settings.train_file or "",
            expected="--data.eval_file FILE, or --data.holdout N to hold out N prompts of the training data",
        )
    if base is None:
        raise DataError("no training data", file=settings.eval_file or "", expected="--data.train_file FILE")
    if base.is_file():
        return SplitRows(read_file(base), name, str(base))
    if base.is_dir():
        return _in_folder(base, settings.subset, name)
    if _is_local(str(settings.path)):
        raise DataError(
            f"no such file or folder (looked for {base.absolute()})",
            file=str(base),
            expected=f"a file ({', '.join(READERS)}), a folder, or a hub name such as Anthropic/hh-rlhf",
        )
    return _load_with_datasets(str(settings.path), settings.subset, name, note="")


def _in_folder(folder: Path, subset: str | None, split: str) -> SplitRows:
    """Return the rows of ``SPLIT.jsonl`` (or another extension) in the folder, else those that ``datasets`` finds."""
    subset_folder = _subset_folder(folder, subset)
    searched = subset_folder or folder
    if (searched / "dataset_dict.json").is_file() or (searched / "dataset_info.json").is_file():
        return _lazy_rows(str(searched), None, split, lambda: _load_saved(searched, split))
    for extension in READERS:
        file = searched / f"{split}{extension}"
        if file.is_file():
            return SplitRows(read_file(file), split, str(file))
    files = f"{searched / split}{{{','.join(READERS)}}}"
    note = f" (also looked for {files})"
    return _load_with_datasets(str(folder), subset if subset_folder else None, split, note=note)


def _subset_folder(folder: Path, subset: str | None) -> Path | None:
    """Return the subset's folder in ``folder``; ``None`` without a subset, or where ``folder`` is the subset itself.

    A missing subset is an error: a misspelt name would silently select every row.
    """
    if subset is None or (folder.resolve().name == subset and not (folder / subset).is_dir()):
        return None
    if not (folder / subset).is_dir():
        names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        hint = nearest(subset, names) if names else ", nor any other folder"
        raise DataError(f"contains no folder {subset!r}{hint}", file=str(folder), field="data.subset")
    return folder / subset


def _is_local(path: str) -> bool:
    """Whether a path that does not exist looks like a local path rather than a hub name (``owner/name``)."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path or path.endswith(tuple(READERS))


def _load_with_datasets(path: str, subset: str | None, split: str, note: str) -> SplitRows:
    return _lazy_rows(path, subset, split, lambda: _load_dataset(path, subset, split, note))


def _lazy_rows(path: str, subset: str | None, split: str, load: Callable[[], Any]) -> SplitRows:
    """Return the rows of the table that ``load`` returns, numbered from 1; it is called when the first row is read."""
    file = f"{path}/{subset} [{split}]" if subset else f"{path} [{split}]"

    def rows() -> Iterator[Row]:
        try:
            table = load()
        except DataError as error:
            raise DataError(error.problem, file=file, expected=error.expected) from error.__cause__
        for number, fields in enumerate(table, start=1):
            yield Row(fields, Origin(file, number))

    return SplitRows(non_empty(rows(), file), split, file)


def _load_saved(folder: Path, split: str) -> Any:
    """Return a split of a data set written by ``save_to_disk``."""
    from datasets import DatasetDict, load_from_disk

    table = load_from_disk(str(folder))
    if not isinstance(table, DatasetDict):
        return table
    if split not in table:
        raise DataError(f"has no split {split!r}{nearest(split, table)}", file=str(folder))
    return table[split]


def _load_dataset(path: str, subset: str | None, split: str, note: str) -> Any:
    import datasets  # takes two seconds to import, and local files do not need it
    import huggingface_hub.constants

    is_local = Path(path).expanduser().is_dir()
    is_offline = not is_local and not hub_is_reachable()
    if is_offline:
        # Read cached data only, without waiting for the network.
        datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        try:
            return datasets.load_dataset(path, data_dir=subset, split=split)
        except RuntimeError as error:
            if "scripts are no longer supported" not in str(error):
                raise
            return datasets.load_dataset(path, data_dir=subset, split=split, revision=PARQUET_BRANCH)
    except Exception as error:  # the hub client, its transport and each file format raise different error classes
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if is_offline:
            reason = "no such file or folder on this machine, and the hub cannot be reached"
        raise DataError(
            f"cannot be loaded{note}: {reason}",
            file=path,
            expected="a data set on the hub that this machine can reach, or a local file or folder",
        ) from error
