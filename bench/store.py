"""Time the run store: appending updates, flushing, reading 10,000 back; beside plain zarr appends.

    python bench/store.py          # a minute; prints a table, writes bench/results/store.json

The payload is a Voting run on a 28-layer model: 4 agents, 57 blocks, Grams of slowly changing
gradients (so that compression meets what it meets in a run), update Grams, transfer, metrics.
Budgets: append <= 1 ms median per update, 10,000 updates read in <= 100 ms.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec

from gradlab.records import (
    Agent,
    PolicyMeta,
    RowStatistics,
    RunLedger,
    RunMeta,
    StepRecord,
    UpdateMetrics,
    UpdateRecord,
    values,
)
from gradlab.store.run import open_run
from gradlab.store.writer import RunStore

NUM_UPDATES = 10_000
NUM_NAIVE = 200
"""Plain zarr appends are timed on fewer updates: they take tens of milliseconds each."""
AGENTS = (*(Agent("generator", number) for number in range(3)), Agent("aggregator"))
BLOCKS = (
    *(f"layers.{layer}.{part}" for layer in range(28) for part in ("attention", "mlp")),
    "embeddings",
)
POLICY = PolicyMeta("shared", AGENTS, BLOCKS, 1_000_000)
META = RunMeta.of_policies("bench", [POLICY])
RESULTS = Path(__file__).parent / "results" / "store.json"


def updates(number: int) -> list[UpdateRecord]:
    """Updates whose block gradients (8 numbers per agent) drift as an AR(1) process."""
    generator = np.random.default_rng(0)
    gradient = generator.normal(size=(len(BLOCKS), len(AGENTS), 8))
    records = []
    for index in range(number):
        gradient = 0.9 * gradient + 0.44 * generator.normal(size=gradient.shape)
        gram = gradient @ gradient.swapaxes(-1, -2)
        metrics = UpdateMetrics(
            learning_rate=1e-5, grad_norm=float(np.sqrt(gram.sum())), clip_factor=1.0, rows=64
        )
        rows = {role: RowStatistics(total=1.0 + index, rows=48) for role in META.roles}
        total = gram.sum(axis=0)
        records.append(
            UpdateRecord(
                "shared",
                index // 2 + 1,
                gram,
                metrics=metrics,
                update_gram_AA=1e-3 * total,
                transfer_AA=1e-2 * total,
                row_statistics=rows,
            )
        )
    return records


def milliseconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - start)


def cpu_milliseconds(work: Callable[[], object]) -> float:
    """CPU time of this process: what a machine with nothing else to do would take."""
    start = time.process_time()
    work()
    return 1e3 * (time.process_time() - start)


def read_grams(path: Path) -> None:
    """What `diagnose` reads: the Grams, and norms, cosine and masses out of them."""
    run = open_run(path)
    run.norm("generator")
    run.norm("aggregator")
    run.cosine("generator", "aggregator")
    run.step_mass("share")
    run.step_mass("pull")


def read_everything(path: Path) -> None:
    """Every array of the updates as recorded, and the read-outs."""
    run = open_run(path)
    run.step_mass("update")
    run.transfer("shared")
    run.update_metric("grad_norm", "shared")
    run.row_statistic("total", "generator")
    run.norm("generator")
    run.cosine("generator", "aggregator")


def naive_arrays(path: Path) -> dict[str, zarr.Array[Any]]:
    """The same arrays as plain zarr arrays, to append one update at a time."""
    group = zarr.create_group(path)
    num_agents = len(AGENTS)
    shapes: dict[str, tuple[int, ...]] = {
        "gram": (len(BLOCKS), num_agents, num_agents),
        "update_gram": (num_agents, num_agents),
        "transfer": (num_agents, num_agents),
        "metrics": (len(values(UpdateMetrics())),),
        "rows": (2, len(values(RowStatistics()))),
        "step": (),
    }
    return {
        name: group.create_array(
            name,
            shape=(0, *shape),
            chunks=(64, *shape),
            dtype="int64" if name == "step" else "float32",
            compressors=BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"),
        )
        for name, shape in shapes.items()
    }


def naive_append(arrays: dict[str, zarr.Array[Any]], record: UpdateRecord) -> None:
    assert record.update_gram_AA is not None
    assert record.transfer_AA is not None
    row = {
        "gram": record.gram_BAA,
        "update_gram": record.update_gram_AA,
        "transfer": record.transfer_AA,
        "metrics": values(record.metrics),
        "rows": np.stack([values(s) for s in record.row_statistics.values()]),
        "step": np.int64(record.step),
    }
    for name, array in arrays.items():
        array.append(np.asarray(row[name], dtype=array.dtype)[np.newaxis])


def measure(directory: Path) -> dict[str, float]:
    records = updates(NUM_UPDATES)
    path = directory / "run.zarr"
    store = RunStore.create(path, META)
    append = [milliseconds(partial(store.append, record)) for record in records]
    close = milliseconds(store.close)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())

    store = RunStore.create(directory / "flush.zarr", META)
    flush = []
    for start in range(0, 63 * 30, 63):  # one row short of flushing by itself
        for record in records[start : start + 63]:
            store.append(record)
        flush.append(milliseconds(store.flush))
    store.close()

    store = RunStore.create(directory / "steps.zarr", META)
    roles: dict[str, np.ndarray] = {role: np.full(128, 1 / 128) for role in META.roles}
    steps = [
        StepRecord(number, 0.0, RunLedger(), {}, signatures=roles) for number in range(1, 1001)
    ]
    step = [milliseconds(partial(store.append, record)) for record in steps]
    store.close()

    naive = naive_arrays(directory / "naive.zarr")
    naive_ms = [
        milliseconds(partial(naive_append, naive, record)) for record in records[:NUM_NAIVE]
    ]
    grams = [milliseconds(lambda: read_grams(path)) for _ in range(7)]
    everything = [milliseconds(lambda: read_everything(path)) for _ in range(7)]
    by_zarr = [
        milliseconds(
            lambda: [zarr.open_array(path / "updates/shared" / name, mode="r")[:] for name in naive]
        )
        for _ in range(3)
    ]
    return {
        "append_median_ms": statistics.median(append),
        "append_mean_ms": statistics.mean(append),
        "append_p99_ms": float(np.percentile(append, 99)),
        "append_step_median_ms": statistics.median(step),
        "flush_63_updates_median_ms": statistics.median(flush),
        "close_ms": close,
        "read_grams_median_ms": statistics.median(grams),
        "read_everything_median_ms": statistics.median(everything),
        "read_everything_cpu_median_ms": statistics.median(
            cpu_milliseconds(lambda: read_everything(path)) for _ in range(7)
        ),
        "read_by_zarr_median_ms": statistics.median(by_zarr),
        "naive_append_median_ms": statistics.median(naive_ms),
        "naive_to_append_mean": statistics.mean(naive_ms) / statistics.mean(append),
        "megabytes": size / 1e6,
    }


def machine() -> dict[str, str]:
    cpu = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    packages = {name: version(name) for name in ("numpy", "zarr", "numcodecs", "xarray")}
    return {
        "cpu": f"{cpu}, {len(os.sched_getaffinity(0))} usable of {os.cpu_count()}",
        "load": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "python": platform.python_version(),
        **packages,
    }


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="gradlab-bench-"))
    try:
        measured = measure(directory)
    finally:
        shutil.rmtree(directory)
    result = {
        "updates": NUM_UPDATES,
        "payload_bytes": 4 * len(AGENTS) ** 2 * (len(BLOCKS) + 2) + 8 + 4 * (11 + 2 * 13),
        "machine": machine(),
        "measured": {name: round(value, 3) for name, value in measured.items()},
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    for name, budget in (("append_median_ms", 1.0), ("read_everything_median_ms", 100.0)):
        verdict = "within" if measured[name] <= budget else "OVER"
        print(f"{name}: {measured[name]:.3f} ms, {verdict} the budget of {budget} ms")


if __name__ == "__main__":
    main()
