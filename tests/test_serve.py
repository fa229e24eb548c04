"""gradlab serve starts a right server and leaves nothing behind; the server here is made up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SmallConfig

from gradlab.commands.main import main
from gradlab.commands.serve import config_to_serve
from trainers.engines import serving as serving_module
from trainers.engines.serving import find_python, serving
from trainers.training import train
from trainers.watch.progress import Progress

SERVER = """
    import http.server, json, os, signal, subprocess, sys
    options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    def end(number, frame):
        engine.kill()
        os._exit(0)
    if os.environ.get("ENDS_ITS_ENGINE"):
        signal.signal(signal.SIGTERM, end)
    about = {"argv": sys.argv[1:], "engine": engine.pid, "model": os.listdir(options["--model"]),
             "environment": {k: v for k, v in os.environ.items() if k.startswith("VLLM")}}
    with open(os.environ["TOLD"], "w") as file:
        json.dump(about, file)
    if os.environ.get("FAILS"):
        print("RuntimeError: out of memory")
        sys.exit(3)
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
    http.server.HTTPServer((options["--host"], int(options["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a made-up vLLM, found by the interpreter, writes what it was started with."""
    package = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    (package / "api_server.py").write_text(textwrap.dedent(SERVER))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    monkeypatch.setenv("TOLD", str(tmp_path / "told.json"))
    yield tmp_path / "told.json"
    if (tmp_path / "told.json").exists():
        assert not is_running(json.loads((tmp_path / "told.json").read_text())["engine"])


def is_running(pid: int) -> bool:
    """Not ended, and not ended without having been waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def port() -> int:
    import socket

    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        found: int = asked.getsockname()[1]
        return found


def test_a_server_gets_what_the_run_needs_and_ends_with_all_that_it_started(
    small_config: SmallConfig, told: Path, tmp_path: Path
) -> None:
    config = small_config(max_prompt_tokens=200, rollout_rows=30)
    place = port()
    with serving(config, Path(sys.executable), "127.0.0.1", place, tmp_path / "log", 60) as running:
        assert running.url == f"http://127.0.0.1:{place}"
        about = json.loads(told.read_text())
        assert is_running(about["engine"])
    given = about["argv"]
    for flag, value in (
        ("--max-lora-rank", "8"), ("--max-loras", "2"), ("--max-model-len", "216"),
        ("--dtype", "float32"), ("--served-model-name", "base"), ("--max-num-seqs", "30"),
    ):  # fmt: skip
        assert given[given.index(flag) + 1] == value
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(about["model"])
    assert about["environment"]["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert about["environment"]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    assert not Path(given[given.index("--model") + 1]).exists(), "the copy of the model is gone"


def test_a_server_that_does_not_start_says_why(
    small_config: SmallConfig, told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAILS", "1")
    with (
        pytest.raises(RuntimeError, match=r"(?s)ended with status 3 before.*out of memory"),
        serving(small_config(), Path(sys.executable), "127.0.0.1", port(), tmp_path / "log", 60),
    ):
        pytest.fail("it has not started")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_command_prints_the_address_and_ends_with_its_server(
    number: int, told: Path, tmp_path: Path
) -> None:
    """Killed itself, it asks the server to end, which ends its engine."""
    (tmp_path / "run.toml").write_text(
        'sampler = "vllm-server"\nsampler_url = ["http://there:1"]\n'
    )
    place = port()
    command = [
        sys.executable, "-m", "gradlab", "serve", str(tmp_path / "run.toml"), "--port", str(place),
        "--python", sys.executable, "--log", str(tmp_path / "log"),
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{Path(__file__).parent.parent}",
        "ENDS_ITS_ENGINE": "yes" if number == signal.SIGKILL else "",
    }
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        assert "starting vLLM" in child.stdout.readline()
        assert f"2 adapters of rank 16 at most, 2064 tokens, at http://127.0.0.1:{place}" in (
            child.stdout.readline()
        )
        assert f"--sampler-url http://127.0.0.1:{place}" in child.stdout.readline()
        child.send_signal(number)
        assert child.wait() == (-number if number == signal.SIGKILL else 130)
    while number == signal.SIGKILL and is_running(json.loads(told.read_text())["engine"]):
        pass  # nobody waits for it any more


def test_a_run_a_file_and_a_preset_can_be_served(
    small_config: SmallConfig, quiet: Progress, tmp_path: Path
) -> None:
    out = train(small_config(steps=1, routing="shared"), quiet)
    assert config_to_serve(str(out)).routing == "shared"
    (tmp_path / "run.toml").write_text('preset = "clean"\nlora_rank = 5\n')
    assert config_to_serve(str(tmp_path / "run.toml")).lora_rank == 5
    assert config_to_serve("Voting-IP-1.7B-Math").dtype == "bfloat16"
    with pytest.raises(ValueError, match="unknown"):
        config_to_serve("nothing")


def test_an_interpreter_without_vllm_is_told_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serving_module, "find_spec", lambda _: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="make vllm"):
        find_python(None)
    (tmp_path / ".venv-vllm" / "bin").mkdir(parents=True)
    (tmp_path / ".venv-vllm" / "bin" / "python").touch()
    assert find_python(None) == Path(".venv-vllm/bin/python")
    assert main(["serve", "clean", "--python", "nowhere"]) == 2
    assert "--python nowhere is no file" in capsys.readouterr().err
