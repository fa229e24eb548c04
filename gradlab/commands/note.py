"""Say something beside the output of a command."""

from __future__ import annotations

import sys


def note(message: str) -> None:
    """Print to stderr: what a command puts out can be piped on."""
    print(message, file=sys.stderr)
