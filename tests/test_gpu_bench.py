"""bench/gpu.py, which a GPU is rarely at hand for: all its parts run in small, and fail alone."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return pytest.importorskip("gpu")


def test_a_part_that_fails_is_recorded_and_the_others_run(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(plan: object) -> list[str]:
        raise RuntimeError("CUDA error | of a kind\nand more")

    def absent(plan: object) -> list[str]:
        raise gpu.Skipped("nothing to run on")

    parts = {"one": broken, "two": absent, "three": lambda plan: ["| 3 |"]}
    monkeypatch.setattr(gpu, "PARTS", parts)
    plan = gpu.Plan("cpu", True, ("Qwen/Qwen3-0.6B",), 1)
    texts: list[str] = []
    assert gpu.measured(plan, list(parts), 60, texts.append) == 1
    assert len(texts) == 3, "written after every part"
    assert "## one\n\n**Failed**: RuntimeError: CUDA error / of a kind\n" in texts[-1]
    assert "## two\n\nLeft out: nothing to run on." in texts[-1]
    assert "## three\n\n| 3 |\n" in texts[-1]
    assert gpu.measured(plan, ["three"], -1, texts.append) == 0
    assert "Left out: -1 seconds were over." in texts[-1]
    assert "CUDA error" in capsys.readouterr().err


def test_the_probe_and_the_log_probs_are_measured_in_small(gpu: ModuleType) -> None:
    plan = gpu.Plan("cpu", True, ("Qwen/Qwen3-0.6B",), 1)
    costs = gpu.probe_costs(plan)
    assert [row.split(" | ")[1] for row in costs[2:]] == list(gpu.VARIANTS)
    assert "| exact " in gpu.probe_exactness(plan)[-1], "it raises where the Gram is wrong"
    whole, chunks = (row.split(" | ") for row in gpu.chunked_logprobs(plan)[2:])
    assert (whole[1], chunks[1]) == ("whole", "chunks")
    assert float(chunks[4]) < 1e-2
    assert float(chunks[5].rstrip(" |")) < 2e-2, "of gradients in bfloat16"


def test_without_vllm_or_a_gpu_their_parts_are_left_out(gpu: ModuleType) -> None:
    plan = gpu.Plan("cpu", True, ("Qwen/Qwen3-0.6B",), 1)
    with pytest.raises(gpu.Skipped, match="CUDA"):
        gpu.marked_tests(plan)
    if find_spec("vllm") is None:
        with pytest.raises(gpu.Skipped, match="not installed"):
            gpu.engine(plan)


@pytest.mark.slow
def test_the_whole_runs_in_small(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [sys.executable, str(BENCH / "gpu.py"), "--small", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    text = out.read_text()
    assert "**Failed**" not in text
    for part in ("torchrun on one device", "Our own sampling", "Sampler and trainer in bfloat16"):
        body = text.split(f"## {part}\n\n")[1].split("\n## ")[0]
        assert body.startswith("| "), part
    [alone, ranked] = text.split("## torchrun on one device")[1].splitlines()[4:6]
    assert alone.split(" | ")[2] == ranked.split(" | ")[2], "the same Gram, bit for bit"
