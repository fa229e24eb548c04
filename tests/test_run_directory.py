"""What lies in a run directory is named in one file, and found under those names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from gradlab import run_directory
from gradlab.run_directory import (
    checkpoint_path,
    continuable,
    directory_of,
    episodes_path,
    is_trained,
    page_path,
    results_of_replays,
    run_name,
    steps_of_checkpoints,
    steps_of_episodes,
    whole_checkpoints,
)

ROOT = Path(__file__).parent.parent
PACKAGES = ("gradlab", "trainers", "analysis", "figures")
SPELLED = ("config.json", "problems.jsonl.gz", "run.zarr", "checkpoints", "alarms.jsonl",
           "report.html", "replays", "plan.json", "result.json", "checkpoint.json",
           "trainer_state.pt")  # fmt: skip
OTHERS = {
    ("gradlab/interop/trl/grpo.py", "run.zarr"): "a store on its own",
    ("trainers/engines/export.py", "config.json"): "of a model",
    ("trainers/models/language.py", "config.json"): "of a model on the hub",
}
"""What is called alike and is something else."""


def paths_in(file: Path) -> set[str]:
    """Names that the file's code spells as a path or a part of one; sentences do not count."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    words = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if " " not in node.value
    }
    return {part for word in words for part in word.split("/")} & set(SPELLED)


def test_names_in_a_run_directory_are_spelled_in_one_file() -> None:
    spelled = {
        (str(file.relative_to(ROOT)), name)
        for package in PACKAGES
        for file in (ROOT / package).rglob("*.py")
        for name in paths_in(file)
    }
    own = {name for file, name in spelled if file == "gradlab/run_directory.py"}
    assert own >= set(SPELLED), "this looks in the wrong place"
    elsewhere = {pair for pair in spelled if pair[0] != "gradlab/run_directory.py"}
    assert elsewhere <= set(OTHERS), "use gradlab.run_directory, which everybody reads"


def test_every_name_is_in_the_drawing_of_the_directory() -> None:
    drawing = ast.get_docstring(ast.parse(Path(run_directory.__file__).read_text()))
    names = [
        value
        for name, value in vars(run_directory).items()
        if name.isupper() and isinstance(value, str)
    ]
    assert len(names) >= 12
    assert [name for name in names if drawing is None or name not in drawing] == []


@pytest.mark.parametrize(
    ("store", "name", "directory"),
    [
        ("runs/a/run.zarr", "a", "runs/a"),
        ("runs/b.zarr", "b", "runs/b.zarr"),
        ("run.zarr", "", "."),
    ],
)
def test_a_store_tells_its_run(store: str, name: str, directory: str) -> None:
    assert run_name(Path(store)) == name
    assert directory_of(Path(store)) == Path(directory)


@pytest.mark.parametrize(
    ("run", "until", "page"),
    [
        ("runs/a", None, "runs/a/report.html"),
        ("runs/a", 40, "runs/a/report-until-40.html"),
        ("runs/b.zarr", None, "runs/b.html"),
        ("runs/b.zarr", 0, "runs/b-until-0.html"),
    ],
)
def test_pages_of_a_run_and_of_its_parts(run: str, until: int | None, page: str) -> None:
    assert page_path(Path(run), until) == Path(page)


def test_episodes_of_steps_and_of_evaluations_are_kept_apart(tmp_path: Path) -> None:
    assert steps_of_episodes(tmp_path, "step") == []
    for kind, step in (("step", 12), ("step", 3), ("eval", 0), ("eval", 1000000)):
        path = episodes_path(tmp_path, kind, step)  # type: ignore[arg-type]
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "episodes/step-000004.jsonl.partial").touch()  # a kill left it
    assert steps_of_episodes(tmp_path, "step") == [3, 12]
    assert steps_of_episodes(tmp_path, "eval") == [0, 1000000]
    assert (tmp_path / "episodes/eval-000000.jsonl.gz").is_file()


def test_checkpoints_are_whole_and_continuable_by_what_lies_in_them(tmp_path: Path) -> None:
    files = {
        1: ("checkpoint.json", "shared/trainer_state.pt"),
        2: ("checkpoint.json", "shared/adapter_model.safetensors"),  # its state was not kept
        3: ("shared/trainer_state.pt",),  # a kill
        10: ("checkpoint.json", "a/trainer_state.pt", "b/trainer_state.pt"),
        11: ("checkpoint.json", "a/trainer_state.pt", "b/adapter_model.safetensors"),
    }
    for step, names in files.items():
        for name in names:
            path = tmp_path / "checkpoints" / f"step-{step:06d}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "checkpoints/step-last").mkdir()
    (tmp_path / "checkpoints/.step-000012.partial").mkdir()
    assert steps_of_checkpoints(tmp_path) == [1, 2, 3, 10, 11]
    assert whole_checkpoints(tmp_path) == [1, 2, 10, 11]
    assert continuable(tmp_path) == [1, 10]
    assert checkpoint_path(tmp_path, 10).is_dir()


def test_runs_and_results_are_found_by_their_files(tmp_path: Path) -> None:
    assert not is_trained(tmp_path)
    (tmp_path / "config.json").mkdir()
    assert not is_trained(tmp_path), "a folder of that name says nothing"
    for name in ("b", "a", "c"):
        (tmp_path / "replays" / name).mkdir(parents=True)
    for name in ("b", "a"):
        (tmp_path / "replays" / name / "result.json").touch()
    (tmp_path / "replays/c/plan.json").touch()  # not finished
    assert [path.parent.name for path in results_of_replays(tmp_path)] == ["a", "b"]
