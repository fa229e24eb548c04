"""Find a source's files and read their rows: JSON lines, JSON, Parquet, or the hub's cache."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDERS = ("data", "../shared/data")
"""Where the file of a task is looked for without --data, after $GRADLAB_DATA."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")


@dataclass(frozen=True)
class Place:
    """Where the files of a task are."""

    task: str
    patterns: tuple[str, ...]
    """Names looked for in the folders, e.g. 'gsm8k*.jsonl'."""
    public: str
    """Which file of which public source it is, in words."""
    hub: str = ""
    """Dataset id at the Hugging Face hub."""
    hub_pattern: str = "**/*train*"
    """Files of it that hold the problems to train on: no test split."""


@dataclass(frozen=True)
class Row:
    """One record of a file."""

    number: str
    """Unique in the task: the line (or row), after the file's place if there are several."""
    where: str
    """'file, line n', for messages."""
    fields: dict[str, Any]

    def text(self, names: Sequence[str], expected: str) -> str:
        """The first of these fields that is there; it must be a text.

        Raises ValueError if there is none.
        """
        for name in names:
            if isinstance(self.fields.get(name), str):
                return str(self.fields[name])
        raise ValueError(f"{self.where}: got fields {sorted(self.fields)}; {expected}")


def find_files(place: Place, data: Path | None) -> list[Path]:
    """The task's files: `data` (a file, a folder or a hub id), else those found in the folders,
    else those in the hub's cache. Nothing is ever downloaded.

    Raises ValueError that says which file to put where, or which of a dataset's files to choose.
    """
    if data is not None:
        if data.is_file():
            return [data]
        if data.is_dir():
            if found := _readable(data, "**/*"):
                return found
            raise ValueError(f"task '{place.task}': {data} holds no {', '.join(SUFFIXES)} file")
        if len(data.parts) == 2 and (found := _cached_files(place, str(data))):
            return found
        raise ValueError(
            f"task '{place.task}': no file {data}; expected {place.public}, or the id of a dataset "
            "that is in the hub's cache (hf download --repo-type dataset ID)"
        )
    folders = [Path(folder) for folder in (os.environ.get("GRADLAB_DATA"), *FOLDERS) if folder]
    for folder in folders:
        for pattern in place.patterns:
            for path in sorted(folder.glob(pattern)):
                return [path]
    if place.hub and (found := _cached_files(place, place.hub)):
        return found
    cache = f" or in the hub's cache of {place.hub}" if place.hub else ""
    raise ValueError(
        f"task '{place.task}' needs a JSONL file (or Parquet): no {' or '.join(place.patterns)} in "
        f"{', '.join(map(str, folders))}{cache}; put it there or give one with --data FILE "
        f"({place.public})"
    )


def _readable(folder: Path, pattern: str) -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.is_file() and p.name.endswith(SUFFIXES))


def _cached_files(place: Place, identity: str) -> list[Path]:
    """The files of a cached dataset to read; none if it is not in the cache.

    Raises ValueError where they are of several splits or configurations: test questions must not
    get among those that train.
    """
    folder = _cached_folder(identity)
    held = _readable(folder, "**/*") if folder else []
    if folder is None or not held:
        return []
    wanted = f"files {place.hub_pattern}" if identity == place.hub else "one split"
    found = _readable(folder, place.hub_pattern) if identity == place.hub else held
    parts = {_part(path, folder): path for path in reversed(held)}
    if found and (identity == place.hub or len(parts) == 1):
        return found
    names = [*sorted(parts)[:8], *(["…"] if len(parts) > 8 else [])]
    raise ValueError(
        f"task '{place.task}': the hub's cache of {identity} holds {', '.join(names)}; expected "
        f"{wanted}: choose with --data FILE or --data FOLDER, e.g. --data {parts[min(parts)]}"
    )


_SHARD = re.compile(r"[-_.]\d+(?:-of-\d+)?(?:-[0-9a-f]{6,})?$")


def _part(path: Path, folder: Path) -> str:
    """Configuration and split that a file belongs to: 'main/train' for main/train-00000-of-2."""
    suffix = next(
        suffix for suffix in sorted(SUFFIXES, key=len)[::-1] if path.name.endswith(suffix)
    )
    name = _SHARD.sub("", path.name.removesuffix(suffix))
    return (path.relative_to(folder).parent / name).as_posix()


def _cached_folder(identity: str) -> Path | None:
    """Where the hub's cache holds a dataset; None if the package or the dataset is not there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(identity, repo_type="dataset", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def read_rows(place: Place, files: Sequence[Path]) -> list[Row]:
    """Every row of the files.

    Raises ValueError for a missing or malformed file, with the line.
    """
    rows = [
        Row(f"{index}-{number}" if len(files) > 1 else str(number), where, fields)
        for index, path in enumerate(files)
        for number, where, fields in _read(place, path)
    ]
    if not rows:
        names = ", ".join(map(str, files))
        raise ValueError(f"task '{place.task}': {names} holds no problem; expected {place.public}")
    return rows


def _read(place: Place, path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"task '{place.task}': no file {path}; expected {place.public}")
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
        return
    text = _decoded(path)
    if path.name.endswith((".json", ".json.gz")) and text.strip() and not _has_json_lines(text):
        whole = _json(text, str(path))
        for number, fields in enumerate(whole if isinstance(whole, list) else [whole], start=1):
            where = f"{path}, element {number}" if isinstance(whole, list) else str(path)
            yield number, where, _object(fields, where)
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield number, where, _object(_json(line, where), where)


def _has_json_lines(text: str) -> bool:
    """Whether the first line is an object of its own: not so in a file that is one JSON value."""
    first = text.lstrip().partition("\n")[0]
    try:
        return isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _decoded(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return raw.decode("utf-8-sig")  # some editors begin a file with a mark
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); expected UTF-8 text, gzip-compressed if its name "
            "ends in .gz"
        ) from error


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also an integer of thousands of digits
        raise ValueError(f"{where}: not JSON ({error}); expected an object") from error


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got a {type(value).__name__}; expected a JSON object")
    return value


def _read_parquet(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ValueError(
            f"{path}: Parquet needs pyarrow, which is not installed; pip install pyarrow, or give "
            "JSON lines"
        )
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a Parquet file ({error})") from error
    for number, fields in enumerate(rows, start=1):
        yield number, f"{path}, row {number}", fields
