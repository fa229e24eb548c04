"""A server that speaks like vLLM's and computes with transformers, with failures to be planted."""

from __future__ import annotations

import contextlib
import copy
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


class StandIn:
    """Serves a base model and whatever adapters it is given, one request after the other."""

    def __init__(self, model: Path, port: int = 0) -> None:
        self.model_path, self.max_model_len, self.max_rank = model, 4096, 512
        self.info: dict[str, Any] | None = None
        self.rows: list[dict[str, Any]] = []
        """Bodies of completions."""
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.sleeps: list[str] = []
        self.failing: list[tuple[int, str]] = []
        """Status and message of the next completions."""
        self.short = self.hanging = 0
        """How many of the next answers lack a log-prob, or come late."""
        self.hang_seconds = 1.0
        self.stale = self.poisoned = self.raw = self.restart_next = False
        self.evict_after = -1
        """Completions after which all adapters are forgotten."""
        self.swapped: dict[str, str] = {}
        """Policy -> the policy whose adapter is loaded for it."""
        self.lock = threading.Lock()
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """With no adapter: what was loaded is gone."""
        self.adapters: dict[str, Path] = {}
        base = AutoModelForCausalLM.from_pretrained(self.model_path, dtype=torch.float32)
        self.models: dict[str, Any] = {"base": base.eval()}
        """A model with the adapter merged, for each that was ever loaded."""
        stand_in, connections = self, list[socket.socket]()
        self.connections = connections

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                connections.append(self.connection)

            def do_GET(self) -> None:
                self.answer(*stand_in.get(self.path))

            def do_POST(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length) or b"{}")
                if stand_in.restart_next and self.path == "/v1/completions":
                    self.close_connection = True  # no answer: as if it had been killed
                    stand_in.restart_next = False
                    threading.Thread(target=stand_in.restart).start()
                    return
                self.answer(*stand_in.post(self.path, body))

            def answer(self, status: int, value: Any) -> None:
                text = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                """Tests are quiet."""

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:
                    return  # whoever asked is gone

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def restart(self) -> None:
        self.stop()
        self.start()

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/health":
            return 200, {}
        if path == "/v1/models":
            base = {"id": "base", "parent": None, "max_model_len": self.max_model_len}
            return 200, {"data": [base, *({"id": a, "parent": "base"} for a in self.adapters)]}
        if path.startswith("/server_info") and self.info is not None:
            return 200, {"vllm_config": self.info}
        return 404, {"detail": "Not Found"}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path in ("/sleep?level=1", "/wake_up"):
            self.sleeps.append(path)
            return 200, {}
        with self.lock:
            return {
                "/v1/load_lora_adapter": self.load,
                "/v1/unload_lora_adapter": self.unload,
                "/v1/completions": self.complete,
            }[path](body)

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        name, path = body["lora_name"], Path(body["lora_path"])
        assert body["load_inplace"] is False, "it sticks: the adapter is read at every step"
        if name in self.adapters:
            return 400, error(f"The lora adapter '{name}' has already been loaded.")
        rank = json.loads((path / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return 400, error(f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}.")
        policy = name.partition("@")[0]
        self.loads.append(name)
        other = self.swapped.get(policy)
        if other:
            path = next((p for n, p in self.adapters.items() if n.startswith(f"{other}@")), path)
        same = [self.models[n] for n in self.models if n.startswith(f"{policy}@")]
        if self.stale and same:
            model = same[0]
        else:
            base = copy.deepcopy(self.models["base"])
            model = PeftModel.from_pretrained(base, str(path)).merge_and_unload().eval()
        if self.poisoned:
            next(model.parameters()).data[:] = float("nan")
        self.adapters[name], self.models[name] = path, model
        return 200, "Success"

    def unload(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.unloads.append(body["lora_name"])
        if self.adapters.pop(body["lora_name"], None) is None:
            return 404, error("The lora adapter cannot be found.")
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if self.failing:
            status, message = self.failing.pop(0)
            return status, error(message)
        if self.evict_after == 0:
            self.adapters.clear()
        self.evict_after -= 1
        name = body["model"]
        if name != "base" and name not in self.adapters:
            return 404, error(f"The model `{name}` does not exist.")
        if self.hanging:
            self.hanging -= 1
            time.sleep(self.hang_seconds)
        self.rows.append(body)
        ids, logprobs = self.draw(body)
        if any(value != value for value in logprobs):
            return 400, error("Out of range float values are not JSON compliant")
        if self.short:
            self.short -= 1
            logprobs = logprobs[:-1]
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": logprobs}}
        return 200, {"choices": [choice]}

    @torch.no_grad()
    def draw(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        """One forward of the whole sequence per token: no cache that could be wrong."""
        model = self.models[body["model"]]
        rng = torch.Generator().manual_seed(body["seed"])
        ids, logprobs, prompt = list[int](), list[float](), body["prompt"]
        while len(ids) < body["max_tokens"] and not set(ids) & set(body["stop_token_ids"]):
            inputs = torch.tensor([[*prompt, *ids]])
            logits = model(input_ids=inputs).logits[0, -1]
            logprob_V = torch.log_softmax(logits / body["temperature"], -1)
            if not bool(logprob_V.isfinite().all()):
                return [0], [float("nan")]
            token = int(torch.multinomial(logprob_V.exp(), 1, generator=rng))
            told = torch.log_softmax(logits, -1) if self.raw else logprob_V
            ids.append(token)
            logprobs.append(float(told[token]))
        return ids, logprobs


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message}}
