"""Lay out a run store as the files of a Zarr v3 hierarchy: documents, chunks, atomic writes.

The store is plain Zarr v3 (zarr-python and xarray read it), but the documents and chunks are put
here and not through zarr, for two reasons. zarr's append changes the shape of one array after the
other, so a kill tears the arrays of a group apart: here one atomic write of the group's `zarr.json`
(with the metadata of its arrays inline) gives all arrays their new length. And a whole chunk
goes to disk, or into the caller's array, in one call (a tenth of zarr's time per chunk).

    run.zarr/zarr.json                 schema, run metadata, closed
    run.zarr/<group>/zarr.json         the commit point: committed rows, generation, all shapes
    run.zarr/<group>/<array>/c.I.0.0   rows I*C .. (I+1)*C-1, padded with the fill value
    run.zarr.journal                   rows that are not committed yet (`gradlab.journal`)

A committed row never changes within a generation; cutting rows off starts a new generation.
Legend: C rows per chunk.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradlab.records import Agent, PolicyMeta, RunMeta
from gradlab.schema import (
    METRIC_RECORDS,
    SCHEMA,
    SCHEMA_VERSION,
    ArraySpec,
    GroupSpec,
    describe,
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


# -- documents ---------------------------------------------------------------------------------


def plain_group(attributes: Document, metadata: Mapping[str, Document] | None = None) -> Document:
    """A group's document; with `metadata` of the nodes below it, readers need no other file."""
    document: Document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    if metadata is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(metadata),
        }
    return document


def array_document(array: ArraySpec, row_shape: tuple[int, ...], length: int) -> Document:
    """The document of a numeric array with `length` rows."""
    dtype = np.dtype(array.dtype)
    rows = chunk_rows(dtype.itemsize * int(np.prod(row_shape)))
    attributes: Document = {"unit": array.unit, "meaning": array.meaning}
    for dim in array.dims:
        if dim in METRIC_RECORDS:
            attributes["metrics"] = describe(METRIC_RECORDS[dim])
    fill: float | int | str = "NaN" if dtype.kind == "f" else array.fill
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [length, *row_shape],
        "data_type": array.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *row_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": fill,
        "codecs": codecs(dtype.itemsize),
        "attributes": attributes,
        "dimension_names": list(array.dims),
        "storage_transformers": [],
    }


def label_document(dim: str, num_labels: int) -> Document:
    """The document of the coordinate of a dimension: one chunk of strings."""
    grid = {"name": "regular", "configuration": {"chunk_shape": [num_labels]}}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [num_labels],
        "data_type": "string",
        "chunk_grid": grid,
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": "",
        "codecs": [{"name": "vlen-utf8", "configuration": {}}],
        "attributes": {},
        "dimension_names": [dim],
        "storage_transformers": [],
    }


def encode_labels(labels: Sequence[str]) -> bytes:
    """The chunk of a coordinate in Zarr's vlen-utf8: a count, then each string with its length."""
    encoded = [label.encode() for label in labels]
    parts = [struct.pack("<I", len(encoded))]
    parts += [struct.pack("<I", len(text)) + text for text in encoded]
    return b"".join(parts)


def group_metadata(spec: GroupSpec, length: int) -> dict[str, Document]:
    """Documents of all arrays of a group: coordinates, then data with `length` rows."""
    labels = {dim: label_document(dim, len(names)) for dim, names in spec.labels.items()}
    arrays = {a.name: array_document(a, spec.row_shape(a), length) for a in spec.arrays}
    return {**labels, **arrays}


def row_dtype(spec: GroupSpec) -> np.dtype[Any]:
    """One row of all arrays of a group, packed little-endian: what the journal keeps."""
    return np.dtype(
        [(a.name, np.dtype(a.dtype).newbyteorder("<"), spec.row_shape(a)) for a in spec.arrays]
    )


@dataclass(frozen=True)
class GroupState:
    """What a group's document says on disk."""

    spec: GroupSpec
    """As stored: metrics that the store does not have are absent from its labels."""
    committed: int
    """Rows that readers see."""
    generation: int
    chunk_rows: Mapping[str, int]
    """Rows per chunk of each array."""


def read_group(path: Path, spec: GroupSpec) -> GroupState:
    """Read the commit point of one group and check it against the schema."""
    directory = path / spec.path
    document = read_document(directory)
    try:
        committed = int(document["attributes"]["committed"])
        generation = int(document["attributes"]["generation"])
        metadata = document["consolidated_metadata"]["metadata"]
        arrays = {array.name: metadata[array.name] for array in spec.arrays}
        for array in spec.arrays:
            metric = next((dim for dim in array.dims if dim in METRIC_RECORDS), None)
            if metric:
                stored = tuple(arrays[array.name]["attributes"]["metrics"])
                spec = replace(spec, labels={**spec.labels, metric: stored})
        rows = {
            name: int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
            for name, document in arrays.items()
        }
        for array in spec.arrays:
            stored_as = arrays[array.name]
            expected = {
                "shape": [committed, *spec.row_shape(array)],
                "data_type": array.dtype,
                "codecs": codecs(np.dtype(array.dtype).itemsize),
            }
            for key, value in expected.items():
                if stored_as[key] != value:
                    raise StoreError(
                        f"{directory / array.name}: {key} is {stored_as[key]}, expected {value}: "
                        f"another program rewrote this array; restore the store from a copy"
                    )
    except (KeyError, TypeError) as error:
        raise StoreError(
            f"{directory / DOCUMENT} lacks {error}: it is damaged or another program rewrote it; "
            f"restore it from a copy"
        ) from error
    return GroupState(spec, committed, generation, rows)


# -- run metadata ------------------------------------------------------------------------------


def meta_document(meta: RunMeta) -> Document:
    """A `RunMeta` as JSON."""
    document: Document = {field.name: getattr(meta, field.name) for field in fields(meta)}
    document["roles"] = list(meta.roles)
    document["problems"] = list(meta.problems)
    document["routing"] = dict(meta.routing)
    document["versions"] = dict(meta.versions)
    document["policies"] = [
        {
            "name": policy.name,
            "agents": [[agent.role, agent.number] for agent in policy.agents],
            "blocks": list(policy.blocks),
            "num_parameters": policy.num_parameters,
        }
        for policy in meta.policies
    ]
    try:
        document["config"] = json.loads(json.dumps(dict(meta.config), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise StoreError(
            f"RunMeta: config cannot be kept as JSON ({error}); "
            f"give it strings, finite numbers, booleans, lists and mappings"
        ) from error
    return document


def parse_meta(document: Document) -> RunMeta:
    """The `RunMeta` that `meta_document` wrote."""
    policies = tuple(
        PolicyMeta(
            name=policy["name"],
            agents=tuple(Agent(role, number) for role, number in policy["agents"]),
            blocks=tuple(policy["blocks"]),
            num_parameters=policy["num_parameters"],
        )
        for policy in document["policies"]
    )
    return RunMeta(
        **{
            **document,
            "policies": policies,
            "roles": tuple(document["roles"]),
            "problems": tuple(document["problems"]),
        }
    )


def root_attributes(meta: RunMeta) -> Document:
    return {"schema": SCHEMA, "schema_version": SCHEMA_VERSION, "meta": meta_document(meta)}


def read_root(path: Path) -> tuple[RunMeta, Document]:
    """The run's metadata and all attributes of the root, after checking whose store it is."""
    if not path.exists():
        raise StoreError(f"no run store at {path}; give a run directory or its run.zarr")
    if not (path / DOCUMENT).exists():
        raise StoreError(
            f"{path} is not a run store: it has no {DOCUMENT}; "
            f"give a run directory (one that holds run.zarr) or the run.zarr itself"
        )
    attributes = read_document(path)["attributes"]
    schema, version = attributes.get("schema"), str(attributes.get("schema_version"))
    if schema != SCHEMA:
        raise StoreError(
            f"{path} is a Zarr store of schema {schema!r}, expected {SCHEMA!r}; "
            f"it was not recorded by gradlab: open it with zarr or xarray"
        )
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise StoreError(
            f"{path} has schema version {version}, this gradlab reads {SCHEMA_VERSION}; "
            f"install the gradlab that wrote it"
        )
    try:
        meta = parse_meta(attributes["meta"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"{path / DOCUMENT}: the run's metadata is damaged ({error!r}); restore it from a copy"
        ) from error
    return meta, attributes
