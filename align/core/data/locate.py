"""Where a source's rows are: a file, the files of a directory, or a data set on the hub or saved from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from align.core.data.chunks import Chunk
from align.core.data.files import CHUNK, COMPRESSIONS, ROWS, SUFFIXES, chunks, file_kind, tables
from align.schemas.errors import AlignError, did_you_mean
from align.schemas.run import Source

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_METADATA = ("dataset_info.json", "dataset_infos.json", "readme.txt", "license.txt", "requirements.txt")
_WORD = re.compile(r"[a-z]+")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_KNOWN = f"known: {' '.join(SUFFIXES)}, all but the last also with {' or '.join(COMPRESSIONS)}"


@dataclass(frozen=True, slots=True)
class Part:
    """One file, or one split of a data set.

    name: what messages call it. size: bytes, 0 where unknown. path: None for a data set.
    open: its chunks in order, each with how much of ``size`` is read by then.
    """

    name: str
    size: int
    path: Path | None
    open: Callable[[], Iterator[tuple[Chunk, int]]]


def locate(source: Source, stream: bool = False) -> tuple[list[Part], list[str]]:
    """The parts of a source in order of their names, and the files of its directory that are none of them.

    stream: read a hub data set as it downloads.

    Raises AlignError where there are none.
    """
    path = Path(source.path).expanduser()
    if path.is_dir():
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            return [_dataset(source, lambda datasets: datasets.load_from_disk(str(path)))], []
        return _files(path, source)
    if path.is_file():
        if not file_kind(path)[0]:
            raise AlignError("is a file of an unknown type", _KNOWN, where=str(path))
        return [_file(path, source)], []
    looks_like_file = file_kind(path)[0] or source.path.startswith((".", "/", "~"))
    if path.exists() or looks_like_file or not _HUB_ID.fullmatch(source.path):
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")][:1000]) if path.parent.is_dir() else ""
        raise AlignError("is no file or directory", near if near.startswith("did") else "", where=source.path)

    def load(datasets: Any) -> Any:
        return datasets.load_dataset(source.path, source.subset, split=source.split, streaming=stream)

    return [_dataset(source, load)], []


def data_files(source: Source) -> list[Path]:
    """Return the local files that hold a source's rows; none for a dataset of the hub.

    Raises AlignError where its directory holds none.
    """
    path = Path(source.path).expanduser()
    if not path.is_dir():
        return [path] if path.is_file() else []
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [part.path for part in _files(path, source)[0] if part.path is not None]


def _file(path: Path, source: Source) -> Part:
    return Part(str(path), path.stat().st_size, path, lambda: chunks(path, source.documents))


def _files(directory: Path, source: Source) -> tuple[list[Part], list[str]]:
    """Return the data files below a directory, and the other visible files.

    Hidden files and those of ``datasets`` itself are left out; .txt files are read where there are no others.

    Where names tell splits apart (``train-00000.parquet``, ``data/test.jsonl``), those of one split only.
    """
    inside = [path.relative_to(directory) for path in sorted(directory.rglob("*")) if path.is_file()]
    visible = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    split = source.split
    found = [path for path in visible if file_kind(path)[0] and path.name.lower() not in _METADATA]
    found = [path for path in found if file_kind(path)[0] != ".txt"] or found
    if not found:
        raise AlignError("has no data files in it", _KNOWN, where=str(directory))
    splits = {path: _split_of(path) for path in found}
    names = sorted(filter(None, set(splits.values())))
    if names:
        if nameless := [str(path) for path in found if not splits[path]]:
            what = f"has files of the splits {', '.join(names)}, and {nameless[0]} that names none"
            raise AlignError(what, "give the files one by one", where=str(directory))
        if split not in names:
            raise AlignError(f"has no files of the split {split!r}", f"split: {', '.join(names)}", where=str(directory))
        found = [path for path in found if splits[path] == split]
    return [_file(directory / path, source) for path in found], [str(path) for path in visible if path not in found]


def _split_of(path: Path) -> str:
    words = set(_WORD.findall(str(path).lower()))
    return next((split for split, names in _SPLITS.items() if words & set(names)), "")


def _dataset(source: Source, load: Callable[[Any], Any]) -> Part:
    name = f"{source.path}[{source.subset}:{source.split}]" if source.subset else f"{source.path}[{source.split}]"
    try:
        import datasets

        dataset = load(datasets)
    except Exception as error:  # whatever the library raises, the data set could not be had
        reason = " ".join(str(error).split()) or type(error).__name__
        raise AlignError(
            f"cannot be loaded as a hub data set: {reason}",
            "check id, subset, split, connection and login; here there is no file or directory of that name",
            where=source.path,
        ) from error
    if hasattr(dataset, "keys"):  # load_from_disk gives all splits
        if source.split not in dataset:
            raise AlignError(f"has no split {source.split!r}", f"split: {', '.join(dataset)}", where=source.path)
        dataset = dataset[source.split]

    rows, size = getattr(dataset, "num_rows", None), 0
    if rows:  # not known of a stream
        size = int(dataset.data.nbytes)

    def read() -> Iterator[tuple[Chunk, int]]:
        done = 0
        for chunk in tables(dataset.iter(max(1, min(ROWS, CHUNK * (rows or 1) // max(1, size))))):
            done += len(chunk)
            yield chunk, done * size // (rows or 1)

    return Part(name, size, None, read)
