"""Projects have folders called analysis, figures or trainers: ours are found, or the clash told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's project: `analysis` and `trainers` are packages, `figures` is a folder."""
    for name in ("analysis", "trainers"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('"""Mine."""\nMINE = 1\n')
    (tmp_path / "analysis" / "signals.py").write_text('"""Mine, and a name of ours."""\n')
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "plot.png").write_bytes(b"")
    return tmp_path


def python(project: Path, *arguments: str, first: bool = True) -> subprocess.CompletedProcess[str]:
    """Python in the project; `first`: with the project before us on PYTHONPATH, too."""
    places = [str(project), str(ROOT)] if first else [str(ROOT)]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "program",
    [
        "import gradlab; from analysis.diagnosis import diagnose",
        "import gradlab; from analysis import diagnose",
        "from gradlab import open_run; import analysis.cliff.ramp",
        "from figures import make_figures",
        "import gradlab; from trainers import TrainConfig, train",
        "import gradlab; import trainers.config",
    ],
)
def test_the_first_import_that_fails_names_both_places_and_what_to_do(
    program: str, project: Path
) -> None:
    done = python(project, "-c", program)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    name = "trainers" if "trainers" in program else "analysis"
    assert error.partition(": ")[0] in {"ImportError", "ModuleNotFoundError"}
    assert str(project / name / "__init__.py") in error
    assert str(ROOT / name) in error
    assert "Rename that folder" in error
    assert f"put {ROOT} first on PYTHONPATH" in error


@pytest.mark.parametrize(
    "program",
    [
        "import gradlab; from analysis import MINE; import analysis.signals; gradlab.open_run",
        "from gradlab import Agent; import trainers; assert trainers.MINE",
        "from gradlab import Agent; Agent('worker', 0)",
    ],
)
def test_a_project_that_uses_gradlab_alone_hears_nothing(program: str, project: Path) -> None:
    done = python(project, "-W", "error", "-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_neither_has_is_as_missing_as_anywhere(project: Path) -> None:
    done = python(project, "-c", "import gradlab; import analysis.nothing")
    assert "ModuleNotFoundError: No module named 'analysis.nothing'" in done.stderr
    done = python(project, "-c", "import gradlab; from analysis import nothing")
    assert "ImportError: cannot import name 'nothing' from 'analysis'" in done.stderr


def test_who_asks_whether_a_module_is_there_gets_an_answer_and_no_error(project: Path) -> None:
    """As Python answers where gradlab is not: None, from find_spec and from `python -m`."""
    program = (
        "import gradlab, importlib.util as util, importlib, sys\n"
        "import analysis\n"
        "for name in ('analysis.cliff', 'analysis.diagnose', 'analysis.nothing'):\n"
        "    assert util.find_spec(name) is None, name\n"
        "assert util.find_spec('analysis.signals').origin == analysis.__path__[0] + '/signals.py'\n"
        "finders = [finder.find_spec('analysis.cliff', None) for finder in sys.meta_path]\n"
        "try:\n"
        "    importlib.import_module('analysis.cliff')\n"
        "except ModuleNotFoundError as error:\n"
        "    assert 'Rename that folder' in str(error)\n"
        "    assert error.name == 'analysis'\n"
        "    assert 'analysis.cliff' not in sys.modules\n"
        "    print('told')\n"
    )
    done = python(project, "-c", program)
    assert (done.stderr, done.stdout) == ("", "told\n")
    done = python(project, "-m", "analysis.cliff")
    assert "No module named analysis.cliff" in done.stderr


@pytest.mark.parametrize("first", [True, False])
def test_every_command_works_inside_such_a_project(project: Path, first: bool) -> None:
    for command in ("train", "diagnose", "figures", "show", "prompts", "audit", "replay", "import"):
        done = python(project, "-m", "gradlab", command, "--help", first=first)
        assert done.returncode == 0, done.stderr
        assert f"usage: gradlab {command}" in done.stdout


def test_a_run_is_trained_diagnosed_and_drawn_inside_such_a_project(project: Path) -> None:
    words = (
        "train --out run --steps 1 --problems-per-step 2 --samples 2 --eval-problems 4 "
        "--threads 1 --lora-rank 2 --device cpu"
    )
    for command in (words, "diagnose run", "figures run --out drawn", "show run --step 1"):
        done = python(project, "-m", "gradlab", *command.split())
        assert done.returncode == 0, done.stderr
    assert list((project / "drawn").rglob("*.pdf"))


def test_another_package_of_the_name_that_was_loaded_before_is_told(project: Path) -> None:
    program = (
        "import analysis, sys; from gradlab.commands.main import main; "
        "sys.exit(main(['diagnose', 'run']))"
    )
    done = python(project, "-c", program)
    assert done.returncode == 2
    assert done.stderr.startswith("gradlab diagnose: 'analysis' is ")
    assert str(project / "analysis") in done.stderr
