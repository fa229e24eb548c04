"""Lay out a run store as the files of a Zarr v3 hierarchy: documents, chunks, atomic writes.

The store is plain Zarr v3 (zarr-python and xarray read it), but the documents and chunks are put
here and not through zarr, for two reasons. zarr's append changes the shape of one array after the
other, so a kill tears the arrays of a group apart: here one atomic write of the group's `zarr.json`
(with the metadata of its arrays inline) gives all arrays their new length. And a whole chunk
goes to disk, or into the caller's array, in one call (a tenth of zarr's time per chunk).

    run.zarr/zarr.json                 schema, run metadata, closed
    run.zarr/<group>/zarr.json         the commit point: committed rows, generation, all shapes
    run.zarr/<group>/<array>/c.I.0.0   rows I*C .. (I+1)*C-1, padded with the fill value
    run.zarr.journal                   rows that are not committed yet (`gradlab.store.journal`)

A committed row never changes within a generation; cutting rows off starts a new generation.
Legend: C rows per chunk.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.store.schema import (
    ArraySpec,
)

Array = NDArray[Any]
Document = dict[str, Any]
"""A parsed `zarr.json`."""

DOCUMENT = "zarr.json"
PARTIAL = ".partial"
"""Suffix of a file that is being written; leftovers of a kill are removed on resume."""

CHUNK_BYTES = 1 << 19
"""Uncompressed bytes of a chunk that `chunk_rows` aims at."""
CHUNK_ROWS = (8, 1024)
"""Fewest and most rows of a chunk; a power of two."""


class StoreError(ValueError):
    """A run store cannot be created, opened, resumed or read; the message says what to do."""


# -- files -------------------------------------------------------------------------------------


def put(path: Path, data: bytes, durable: bool = False) -> None:
    """Write a file atomically: readers see the old bytes or the new ones, never a mixture."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        with open(partial, "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            if durable:
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power loss."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def put_document(directory: Path, document: Document, durable: bool = False) -> None:
    put(directory / DOCUMENT, json.dumps(document, allow_nan=False).encode(), durable)


def read_document(directory: Path) -> Document:
    """The `zarr.json` of a directory, with a `StoreError` where it is damaged."""
    path = directory / DOCUMENT
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(
            f"{path} is missing: the store was copied or deleted in part; copy it again as a whole"
        ) from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged ({error}); restore it from a copy") from error
    if not isinstance(document, dict) or not isinstance(document.get("attributes"), dict):
        raise StoreError(f"{path} is not a Zarr v3 document; restore it from a copy")
    return document


def journal_path(path: Path) -> Path:
    """Where the journal of the store at `path` lies: beside it, so that Zarr never meets it."""
    return path.with_name(path.name + ".journal")


# -- chunks ------------------------------------------------------------------------------------


def chunk_rows(row_bytes: int) -> int:
    """Rows per chunk of an array: a power of two near `CHUNK_BYTES`, within `CHUNK_ROWS`."""
    fewest, most = CHUNK_ROWS
    rows = most
    while rows > fewest and rows * row_bytes > CHUNK_BYTES:
        rows //= 2
    return rows


def chunk_name(index: int, num_dims: int) -> str:
    return ".".join(["c", str(index), *("0" for _ in range(num_dims - 1))])


def codecs(itemsize: int) -> list[Document]:
    """The codec pipeline of every numeric array; crc32c tells a damaged chunk from a whole one."""
    blosc = {"typesize": itemsize, "cname": "zstd", "clevel": 3, "shuffle": "shuffle"}
    return [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "blosc", "configuration": {**blosc, "blocksize": 0}},
        {"name": "crc32c"},
    ]


def encode_chunk(chunk: Array) -> bytes:
    """Compress a whole chunk as `codecs` declares."""
    import google_crc32c  # imported here: `gradlab --help` needs neither
    from numcodecs import blosc  # type: ignore[import-untyped]  # ships no types

    blosc.use_threads = False  # as zarr does: a process-wide thread pool does not survive a fork
    body: bytes = blosc.compress(
        np.ascontiguousarray(chunk), b"zstd", 3, shuffle=blosc.SHUFFLE, typesize=chunk.itemsize
    )
    return body + struct.pack("<I", google_crc32c.value(body))


def decode_chunk(data: bytes, into: Array) -> None:
    """Decompress a chunk into a contiguous array of its shape; `ValueError` if it is damaged."""
    import google_crc32c
    from numcodecs import blosc

    blosc.use_threads = False
    if len(data) < 4 or google_crc32c.value(data[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise ValueError("checksum does not match")
    blosc.decompress(data[:-4], into)


def read_rows(
    directory: Path, array: ArraySpec, row_shape: tuple[int, ...], rows: int, start: int, stop: int
) -> Array:
    """Committed rows start..stop-1 of the array in `directory`, whose chunks hold `rows` rows."""
    result: Array = np.empty((stop - start, *row_shape), dtype=array.dtype)
    for index in range(start // rows, -(-stop // rows)):
        path = directory / chunk_name(index, len(array.dims))
        first = index * rows
        whole = first >= start and first + rows <= stop
        chunk = result[first - start : first - start + rows] if whole else None
        if chunk is None:
            chunk = np.empty((rows, *row_shape), dtype=array.dtype)
        try:
            decode_chunk(path.read_bytes(), chunk)
        except FileNotFoundError:
            raise StoreError(
                f"{path} is missing although rows {first}..{min(stop, first + rows) - 1} were "
                f"committed: the store was copied or deleted in part; copy it again as a whole"
            ) from None
        except (ValueError, RuntimeError) as error:
            raise StoreError(f"{path} is damaged ({error}); restore it from a copy") from error
        if not whole:
            low, high = max(first, start), min(first + rows, stop)
            result[low - start : high - start] = chunk[low - first : high - first]
    return result
