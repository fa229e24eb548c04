"""Read the lines of a text file that may be packed, coloured, or cut off."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
CUT_AT = 4096
"""Characters after which wandb cuts the lines of its output.log."""
MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Line:
    """One line without colours."""

    text: str
    is_cut: bool = False
    """It has exactly as many characters as a cut line has: what it ends with may be a part."""


def is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == MAGIC


def opened(path: Path) -> IO[bytes]:
    """A file as bytes, unpacked where it is gzip."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if is_packed(path) else path.open("rb")


def whole(path: Path) -> str:
    """All text of a file."""
    with opened(path) as file:
        return file.read().decode("utf-8-sig", errors="replace")


def lines(path: Path) -> Iterator[Line]:
    """Lines without colours; a progress bar's carriage returns end lines, too."""
    with opened(path) as file:
        for raw in file:
            kept = raw.rstrip(b"\r\n")
            text = kept.decode("utf-8", errors="replace")
            plain = ANSI.sub("", text)
            # Who cuts may count characters or bytes, with colours or without.
            is_cut = CUT_AT in (len(kept), len(text), len(plain))
            pieces = plain.split("\r")
            yield from (Line(piece) for piece in pieces[:-1])
            yield Line(pieces[-1], is_cut)


def ends_with_newline(path: Path) -> bool:
    """Whether the last line is whole; a killed writer leaves a part."""
    last = b""
    with opened(path) as file:
        while block := file.read(1 << 20):
            last = block
    return last.endswith((b"\r", b"\n"))
