"""Ask a vLLM server over HTTP: token ids in, token ids and log-probs out.

One request per response: a seed that a request gives to several prompts makes equal prompts get
equal responses. The server puts all that is under way into one batch, whatever the adapter.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from trainers.engines.engine import EngineLost, EngineRefused, Request
from trainers.engines.settings import EngineSettings
from trainers.models.sampler import Sample

BASE = "base"
"""What `gradlab serve` calls the base model."""
UNDER_WAY = 256
"""Requests that a server is sent before it has answered one."""
SHORT_SECONDS = 30
"""How long a server has for a question that costs it nothing."""
LOOK_EVERY = 0.5
"""Seconds between two looks whether a server is back."""


@dataclass
class Server:
    """One server."""

    url: str
    seconds: float
    """Longest wait for one answer."""
    base: str = BASE
    """Its name for the base model, learned at `check`."""
    _idle: list[HTTPConnection] = field(default_factory=list, repr=False)
    """Connections that nobody uses; appending and popping are atomic."""

    @property
    def name(self) -> str:
        return self.url

    def check(self, settings: EngineSettings) -> None:
        try:
            status, answer = self._ask("GET", "/v1/models", seconds=SHORT_SECONDS)
        except EngineLost as error:
            raise EngineRefused(
                f"{error}; start one with: gradlab serve RUN_OR_CONFIG, and give its address"
            ) from error
        models = answer.get("data") if status == 200 and isinstance(answer, dict) else None
        if not models:
            raise EngineRefused(f"{self.url} is no vLLM server: /v1/models answers {status}")
        bases = [model for model in models if not model.get("parent")]
        self.base = str(bases[0]["id"])
        length = bases[0].get("max_model_len") or 0
        if length < settings.max_model_len:
            raise EngineRefused(
                f"{self.url} takes {length} tokens of prompt and response, the run needs "
                f"{settings.max_model_len} (--max-prompt-tokens and --max-response-tokens); start "
                f"it with --max-model-len {settings.max_model_len}, as gradlab serve does"
            )
        self._check_start(settings)

    def _check_start(self, settings: EngineSettings) -> None:
        """Compare what the server was started with, where it tells."""
        question = "/server_info?" + urlencode({"config_format": "json"})
        status, answer = self._ask("GET", question)  # it looks over its whole machine for it
        if status != 200 or not isinstance(answer, dict):
            return  # only a development server tells; the canary finds what is wrong
        started, wrong = answer.get("vllm_config"), []
        if not isinstance(started, dict):
            return
        lora, model = started.get("lora_config") or {}, started.get("model_config") or {}
        if not lora:
            wrong.append("without --enable-lora")
        for name, least in (
            ("max_lora_rank", settings.max_lora_rank), ("max_loras", settings.max_loras),
        ):  # fmt: skip
            if lora and lora.get(name, least) < least:
                flag = name.replace("_", "-")
                wrong.append(f"with --{flag} {lora[name]}, the run needs {least}")
        for name, expected in (
            ("logprobs_mode", "processed_logprobs"), ("generation_config", "vllm"),
            ("dtype", settings.dtype),
        ):  # fmt: skip
            value = str(model.get(name, expected)).removeprefix("torch.")
            if value != expected:
                flag = name.replace("_", "-")
                wrong.append(f"with --{flag} {value}, the run needs {expected}")
        if wrong:
            raise EngineRefused(
                f"{self.url} was started {'; '.join(wrong)}. gradlab serve RUN_OR_CONFIG starts a "
                "right one"
            )

    def revive(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while True:
            try:
                status, _ = self._ask("GET", "/health", seconds=SHORT_SECONDS)
                if status == 200:
                    return
                why = f"/health answers {status}"
            except EngineLost as error:
                why = str(error)
            if time.monotonic() > until:
                raise EngineLost(f"{self.url} did not come back in {seconds:g} s ({why})")
            time.sleep(LOOK_EVERY)

    def adapters(self) -> list[str]:
        status, answer = self._ask("GET", "/v1/models", seconds=SHORT_SECONDS)
        if status != 200:
            raise EngineLost(f"{self.url}: /v1/models answers {status} ({_message(answer)})")
        return [str(model["id"]) for model in answer["data"] if model.get("parent")]

    def load(self, adapter: str, path: Path) -> None:
        body = {"lora_name": adapter, "lora_path": str(path), "load_inplace": False}
        status, answer = self._ask("POST", "/v1/load_lora_adapter", body)
        if status == 404 and "not found" in _message(answer).lower().replace("_", " "):
            raise EngineRefused(
                f"{self.url} does not take adapters while it runs; it needs --enable-lora and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1, as gradlab serve starts it"
            )
        self._expect(status, answer, f"to load {adapter}")

    def unload(self, adapter: str) -> None:
        status, answer = self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": adapter})
        if status != 404:
            self._expect(status, answer, f"to unload {adapter}")

    def draw(self, requests: Sequence[Request]) -> list[Sample]:
        failed = threading.Event()

        def one(request: Request) -> Sample | None:
            if failed.is_set():
                return None
            try:
                return self._draw_one(request)
            except BaseException:
                failed.set()
                raise

        # What is asked alike stands together: its prompt is computed once.
        order = sorted(
            range(len(requests)), key=lambda i: (requests[i].adapter, requests[i].prompt)
        )
        found: dict[int, Sample] = {}
        with ThreadPoolExecutor(min(UNDER_WAY, max(len(order), 1))) as pool:
            futures = {place: pool.submit(one, requests[place]) for place in order}
        errors = [error for future in futures.values() if (error := future.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, EngineLost)):
            raise error  # what is refused comes first: repeating would not help
        for place, future in futures.items():
            sample = future.result()
            assert sample is not None, "nothing failed"
            found[place] = sample
        return [found[place] for place in range(len(requests))]

    def _draw_one(self, request: Request) -> Sample:
        body = {
            "model": request.adapter or self.base,
            "prompt": list(request.prompt),
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "seed": request.seed,
            "logprobs": 0,
            "return_token_ids": True,
            # Ours alone: an engine would add those of the model's files.
            "ignore_eos": True,
            "stop_token_ids": list(request.end_ids),
        }
        status, answer = self._ask("POST", "/v1/completions", body)
        about = f"for a response of {request.adapter or 'the base model'}"
        if status == 404:
            raise EngineLost(f"{self.url} has no adapter {request.adapter} any more")
        self._expect(status, answer, about)
        return read_sample(answer, request, f"{self.url}, asked {about},")

    def sleep(self) -> None:
        status, answer = self._ask("POST", "/sleep?level=1")
        self._expect(status, answer, "to sleep (gradlab serve lets it with --sampler-sleep)")

    def wake(self) -> None:
        status, answer = self._ask("POST", "/wake_up")
        self._expect(status, answer, "to wake up")

    def close(self) -> None:
        """The server is not ours to end."""
        while self._idle:
            self._idle.pop().close()

    def _expect(self, status: int, answer: Any, what: str) -> None:
        """Raise for an answer that is an error."""
        if status == 200:
            return
        message = f"{self.url}, asked {what}, answers {status}: {_message(answer)}"
        # 4xx: the question is at fault, and it would be the same again.
        raise (EngineRefused if 400 <= status < 500 else EngineLost)(message)

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, seconds: float = 0
    ) -> tuple[int, Any]:
        """Status and JSON of an answer. Raises EngineLost where there is none."""
        seconds = seconds or self.seconds
        text = None if body is None else json.dumps(body)
        while True:
            connection, is_fresh = self._take(seconds)
            try:
                connection.request(method, path, text, {"Content-Type": "application/json"})
                response = connection.getresponse()
                read = response.read()
            except TimeoutError as error:
                connection.close()
                raise EngineLost(f"{self.url} gave no answer within {seconds:g} s") from error
            except (OSError, HTTPException) as error:
                connection.close()
                if not is_fresh:
                    continue  # servers hang up on those that were idle for seconds
                why = str(error) or type(error).__name__
                raise EngineLost(f"{self.url} cannot be reached ({why})") from error
            self._idle.append(connection)
            try:
                return response.status, json.loads(read) if read else {}
            except ValueError:
                return response.status, read.decode(errors="replace")

    def _take(self, seconds: float) -> tuple[HTTPConnection, bool]:
        """A connection that is this thread's until it is put back, and whether it is new.

        They are kept open, since a wave is thousands of requests.
        """
        try:
            kept = self._idle.pop()
        except IndexError:
            parts = urlsplit(self.url)
            kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
            return kind(parts.hostname or "", parts.port, timeout=seconds), True
        kept.timeout = seconds
        if kept.sock is None:  # the server closed it with its last answer
            return kept, True
        kept.sock.settimeout(seconds)
        return kept, False


def read_sample(answer: Any, request: Request, who: str) -> Sample:
    """The response in an answer of /v1/completions.

    Raises EngineLost for an answer that is not the response that was asked for: fewer tokens than
    log-probs, none, or one that ends where neither its length nor an end token ends it.
    """
    try:
        [choice] = answer["choices"]
        ids = tuple(int(token) for token in choice["token_ids"])
        logprobs = tuple(float(value) for value in choice["logprobs"]["token_logprobs"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineLost(f"{who} answers without tokens or log-probs ({error!r})") from error
    if len(ids) != len(logprobs) or not 0 < len(ids) <= request.max_tokens:
        raise EngineLost(
            f"{who} answers {len(ids)} tokens with {len(logprobs)} log-probs; expected 1 to "
            f"{request.max_tokens} of both"
        )
    is_ended = ids[-1] in request.end_ids
    if any(token in request.end_ids for token, _ in pairwise(ids)) or not (
        is_ended or len(ids) == request.max_tokens
    ):
        raise EngineLost(
            f"{who} answers {len(ids)} of {request.max_tokens} tokens, which do not end where the "
            "response does: an end token is missing, or not the last"
        )
    return Sample(ids, logprobs, truncated=not is_ended)


def _message(answer: Any) -> str:
    """What an error says."""
    if isinstance(answer, dict):
        error = answer.get("error", answer)
        answer = error.get("message", error) if isinstance(error, dict) else error
    return str(answer)[:500]
