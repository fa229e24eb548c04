"""Write and read the `zarr.json` documents of a group: its arrays and its commit point."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradlab.store.disk import DOCUMENT, Document, StoreError, chunk_rows, codecs, read_document
from gradlab.store.schema import METRIC_RECORDS, ArraySpec, GroupSpec, describe


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
    """As stored: without arrays and metrics that the store is too old to have."""
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
        there = tuple(a for a in spec.arrays if a.since == "1.0" or a.name in metadata)
        spec = replace(spec, arrays=there)
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
