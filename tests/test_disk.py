"""Chunks, atomic files and documents of a run store, against zarr itself."""

import resource
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from gradlab.store.disk import (
    CHUNK_BYTES,
    StoreError,
    chunk_name,
    chunk_rows,
    decode_chunk,
    encode_chunk,
    put,
    put_document,
    read_document,
    read_rows,
)
from gradlab.store.documents import array_document, encode_labels, label_document
from gradlab.store.schema import ArraySpec

SPEC = ArraySpec("value", ("update", "block"), "float32", "1", "a test")


@given(
    npst.arrays(
        st.sampled_from(["float32", "float64", "int64", "uint8"]),
        npst.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5),
    )
)
def test_a_chunk_comes_back_bit_for_bit(chunk: np.ndarray) -> None:
    back = np.empty_like(chunk)
    decode_chunk(encode_chunk(chunk), back)
    assert back.tobytes() == chunk.tobytes()


def test_every_damaged_byte_of_a_chunk_is_noticed() -> None:
    data = encode_chunk(np.arange(12.0))
    for position in range(len(data)):
        flipped = data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
        with pytest.raises(ValueError, match="checksum"):
            decode_chunk(flipped, np.empty(12))
    for cut in range(len(data)):
        with pytest.raises(ValueError, match="checksum"):
            decode_chunk(data[:cut], np.empty(12))


@pytest.mark.parametrize(("row_bytes", "rows"), [(8, 1024), (512, 1024), (4096, 128), (1 << 20, 8)])
def test_chunks_stay_near_half_a_mebibyte(row_bytes: int, rows: int) -> None:
    assert chunk_rows(row_bytes) == rows
    assert rows == 8 or rows * row_bytes <= CHUNK_BYTES


@pytest.fixture
def array(tmp_path: Path) -> Path:
    """21 rows of 2 in chunks of 8."""
    for index in range(3):
        rows = np.arange(index * 16, index * 16 + 16, dtype=np.float32).reshape(8, 2)
        put(tmp_path / chunk_name(index, 2), encode_chunk(rows))
    document = array_document(SPEC, (2,), 21)
    document["chunk_grid"]["configuration"]["chunk_shape"] = [8, 2]
    put_document(tmp_path, document)
    return tmp_path


def test_any_range_of_rows_is_read_as_zarr_reads_it(array: Path) -> None:
    by_zarr = np.asarray(zarr.open_array(array, mode="r")[:])
    assert by_zarr.shape == (21, 2)
    for start in range(21):
        for stop in range(start, 22):
            np.testing.assert_array_equal(
                read_rows(array, SPEC, (2,), 8, start, stop), by_zarr[start:stop]
            )


def test_missing_and_damaged_chunks_are_named(array: Path) -> None:
    chunk = array / "c.1.0"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(StoreError, match=r"c\.1\.0 is damaged .* restore it from a copy"):
        read_rows(array, SPEC, (2,), 8, 0, 21)
    chunk.unlink()
    with pytest.raises(StoreError, match=r"c\.1\.0 is missing although rows 8\.\.15"):
        read_rows(array, SPEC, (2,), 8, 0, 21)


def test_zarr_reads_the_labels(tmp_path: Path) -> None:
    labels = ("generator[0]", "Prüfer[1]", "")
    put_document(tmp_path, label_document("agent", 3))
    put(tmp_path / chunk_name(0, 1), encode_labels(labels))
    assert tuple(zarr.open_array(tmp_path, mode="r")[:].tolist()) == labels


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    put(tmp_path / "file", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            put(tmp_path / "file", bytes(5000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_durable_write_is_a_write(tmp_path: Path) -> None:
    put(tmp_path / "file", b"new", durable=True)
    assert (tmp_path / "file").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "damaged"), ('{"attri', "damaged"), ("[]", "not a Zarr v3"), ("{}", "not a Zarr v3")],
)
def test_a_damaged_document_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(StoreError, match=f"zarr.json is {message}.*restore it from a copy"):
        read_document(tmp_path)


def test_a_missing_document_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"zarr.json is missing.*copy it again"):
        read_document(tmp_path)
