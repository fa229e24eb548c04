"""Modules that a file of one's own imports from beside it are part of what a run was made with."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SmallConfig

from gradlab.own_modules import own_modules
from gradlab.own_parts import PartError, load_part
from trainers.rundir.own_parts import changed_parts, check_parts
from trainers.training import train
from trainers.watch.progress import Progress

FLOW = (
    "from gradlab import Agent, Ask, workflow\n"
    "from asking_here import question\n"
    '@workflow(roles={"solver": 1})\n'
    "def mine(problem):\n"
    '    [reply] = yield [Ask(Agent("solver"), question(problem))]\n'
    "    return reply.value\n"
)
ASKING = "import words_here.marks\ndef question(problem):\n    return f'g{problem.question}'\n"


@pytest.fixture(autouse=True)
def _modules_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]
    sys.path[:] = path


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def project(folder: Path, **files: str) -> None:
    for name, text in files.items():
        file = folder / f"{name.replace('__in__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def paid(name: str) -> float:
    value: float = load_part("--reward", name, callable, "a function").value()
    return value


def test_what_lies_beside_is_found_through_others_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raises = "raise RuntimeError('was run')\n"
    project(
        tmp_path,
        flow_a="import helper_a\nfrom pack_a import two\nimport json, numpy, gradlab\n",
        helper_a=f"def f():\n    import late_a\n{raises}",
        late_a="import flow_a\n",  # a circle ends
        pack_a__in____init__=f"from . import one\n{raises}",
        pack_a__in__one="from .deep.three import x\n",
        pack_a__in__two="",
        pack_a__in__unused="",
        pack_a__in__deep__in__three="from ..two import y\n",  # deep has no __init__
        json="",  # hides nothing: Python's own stands first
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.path.append(sys.path.pop(0))
    found = own_modules(tmp_path / "flow_a.py", None)
    assert [(m.name, m.place) for m in found] == [
        ("helper_a", "helper_a.py"),
        ("late_a", "late_a.py"),
        ("pack_a", "pack_a/__init__.py"),
        ("pack_a.deep.three", "pack_a/deep/three.py"),
        ("pack_a.one", "pack_a/one.py"),
        ("pack_a.two", "pack_a/two.py"),
    ]
    assert found[1].sha256 == sha("import flow_a\n")
    # As a module of a package it brings its package along.
    names = [m.name for m in own_modules(tmp_path / "pack_a" / "two.py", "pack_a.two")]
    assert names == ["pack_a", "pack_a.deep.three", "pack_a.one"]


def test_what_is_installed_below_the_folder_is_not_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / ".venv" / "lib" / "site-packages"
    project(installed, theirs_b="", mine_b__in__flow="import theirs_b, mine_b.more\n")
    project(installed, mine_b__in__more="", mine_b__in____init__="")
    project(tmp_path, flow_b="import theirs_b\n")
    monkeypatch.syspath_prepend(installed)
    assert own_modules(tmp_path / "flow_b.py", None) == ()
    # A part that is itself installed has its package, and no other.
    found = own_modules(installed / "mine_b" / "flow.py", "mine_b.flow")
    assert [m.name for m in found] == ["mine_b", "mine_b.more"]


@pytest.mark.parametrize("name", ["{}/pay_c.py:mine", "pay_c:mine", "pack_c.pay:mine"])
def test_a_part_is_what_its_files_are_now(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same size and second, too, which Python's bytecode would not tell apart."""
    pay = "from amount_c import AMOUNT\ndef mine():\n    return 1.0 * AMOUNT\n"
    monkeypatch.chdir(tmp_path)
    project(tmp_path, amount_c="AMOUNT = 2\n", pay_c=pay, pack_c__in__pay=pay)
    named = name.format(tmp_path)
    first = load_part("--reward", named, callable, "a function")
    assert paid(named) == 2.0
    assert load_part("--reward", named, callable, "a function").value is first.value
    project(tmp_path, amount_c="AMOUNT = 3\n")
    assert paid(named) == 3.0
    changed = pay.replace("1.0", "5.0")
    project(tmp_path, pay_c=changed, pack_c__in__pay=changed)
    assert paid(named) == 15.0
    assert first.value() == 2.0  # who held it holds what it was


def test_a_package_is_not_run_to_find_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, pack_d__in____init__="import marker_d\n", pack_d__in__pay="", marker_d="")
    monkeypatch.chdir(tmp_path)
    about = {
        "parts": {"reward": {"name": "pack_d.pay:x", "file": "pack_d/pay.py", "sha256": sha("")}}
    }
    check_parts(tmp_path / "run", about)
    assert "pack_d" not in sys.modules
    assert "marker_d" not in sys.modules


def test_a_changed_module_is_named_on_resume_and_its_copy_puts_it_back(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(tmp_path, flow_e=FLOW, asking_here=ASKING, words_here__in__marks="MARK = '?'\n")
    config = small_config(workflow=f"{tmp_path / 'flow_e.py'}:mine", steps=1, checkpoint_every=1)
    train(config, quiet)
    about = json.loads((config.out / "config.json").read_text())
    marks = tmp_path / "words_here" / "marks.py"
    kept = about["parts"]["workflow"]["modules"]
    assert {place: part["sha256"] for place, part in kept.items()} == {
        "asking_here.py": sha(ASKING),
        "words_here/marks.py": sha("MARK = '?'\n"),
    }
    copy = config.out / "own_parts" / "workflow" / "modules" / "words_here" / "marks.py"
    assert copy.read_text() == "MARK = '?'\n"
    again = replace(config, resume=True, extend_to=2)
    monkeypatch.chdir(tmp_path / "words_here")  # from anywhere
    marks.write_text("MARK = '!'\n")
    with pytest.raises(PartError, match=rf"mine: marks.py has changed since .*cp {copy} marks.py"):
        train(again, quiet)
    marks.unlink()
    with pytest.raises(PartError, match=r"marks.py is no longer there to be imported"):
        train(again, quiet)
    marks.write_text(copy.read_text())
    (tmp_path / "words_here" / "__init__.py").write_text("")
    with pytest.raises(PartError, match=r"__init__.py would be imported, and was not there when"):
        train(again, quiet)
    (tmp_path / "words_here" / "__init__.py").unlink()
    train(again, quiet)
    for part in about["parts"].values():
        del part["modules"]  # a run from before modules were kept
    marks.write_text("MARK = '!'\n")
    check_parts(config.out, about)


def test_what_changed_between_two_runs_has_modules_by_their_place() -> None:
    def part(sha256: str, **modules: str) -> dict[str, object]:
        kept = {place: {"file": f"x/{place}", "sha256": of} for place, of in modules.items()}
        return {"name": "f.py:x", "file": "f.py", "sha256": sha256, "modules": kept}

    old, new = {"reward": part("1", a="2", b="3")}, {"reward": part("1", a="2", b="4", c="5")}
    assert changed_parts(old, new) == {"x/b": ["3", "4"]}
    assert changed_parts({"reward": {"file": "g.py", "sha256": "0"}}, new) == {"f.py": ["0", "1"]}
