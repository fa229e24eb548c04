"""Tell every rank at once when one fails: a thread and a socket beside what they compute.

A collective waits for a rank that has died until its timeout, which is hours. Here every rank keeps
a connection to rank 0; the system closes it with the process, however that ends, and rank 0 tells
the others. A rank that fails by an error says why before it ends.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from types import FrameType
from typing import Any

GRACE_SECONDS = 10.0
"""What a rank has to end by itself after another failed; then it is ended, wherever it waits."""
OWN_SECONDS = 1.0
"""What a rank has to find the same error by itself."""
CONNECT_SECONDS = 60.0

WAKE = signal.SIGUSR1
"""Takes the main thread out of what it waits for."""


class RankFailed(RuntimeError):
    """Another rank has failed, and this one cannot go on without it."""


class Lifeline:
    """The connections between rank 0 and all others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self.failure: RankFailed | None = None
        """What happened to another rank."""
        self._peers: dict[socket.socket, int] = {}
        """Connections, and the rank at the other end."""
        self._buffers: dict[socket.socket, bytes] = {}
        self._over: set[int] = set()
        """Ranks that have said that they are done."""
        self._names: dict[int, str] = {}
        self._lock = threading.Lock()
        self._is_leaving = False
        self._token = ""
        self._listener: socket.socket | None = None
        self._is_first_gone = False

    # Set up, on every rank in this order.

    def listen(self, *, is_one_machine: bool) -> tuple[str, int, str]:
        """On rank 0: where the others connect to, and the word that they say."""
        host = "127.0.0.1" if is_one_machine else ""
        self._listener = socket.create_server((host, 0), backlog=self.size)
        self._token = secrets.token_hex(16)
        reach = host or os.environ.get("MASTER_ADDR") or socket.gethostname()
        return reach, self._listener.getsockname()[1], self._token

    def connect(self, host: str, port: int, token: str) -> None:
        """On the other ranks."""
        connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._peers[connection] = 0
        self._names[0] = "rank 0"
        self._say(connection, {"token": token, "rank": self.rank, "name": self.name})

    def watch(self) -> None:
        """Wait for the others where they are expected, then listen beside what is computed."""
        if self._listener is not None:
            self._accept_all(self._listener)
        signal.signal(WAKE, self._wake)
        threading.Thread(target=self._listen, name="lifeline", daemon=True).start()

    @property
    def speaks_for_others(self) -> bool:
        """Whether another rank tells the user what failed: rank 0, or rank 1 once it has died."""
        return self.rank != (1 if self._is_first_gone else 0)

    @property
    def name(self) -> str:
        """This process in words."""
        return f"rank {self.rank} (process {os.getpid()} on {socket.gethostname()})"

    def _accept_all(self, listener: socket.socket) -> None:
        listener.settimeout(CONNECT_SECONDS)
        while len(self._peers) < self.size - 1:
            connection, _ = listener.accept()
            connection.settimeout(CONNECT_SECONDS)
            hello = json.loads(first_line(connection) or b"{}")
            if hello.get("token") != self._token:  # somebody who is none of us
                connection.close()
                continue
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._peers[connection] = hello["rank"]
            self._names[hello["rank"]] = hello["name"]
        listener.close()

    # What a rank says.

    def fail(self, reason: str) -> bool:
        """Tell the others why this rank ends; whether somebody will say it to the user."""
        return self._end({"failed": self.name, "reason": reason})

    def done(self) -> None:
        """Tell the others that this rank has finished and may close its connection."""
        self._end({"done": self.rank})

    def _end(self, message: dict[str, Any]) -> bool:
        with self._lock:
            self._is_leaving = True
        heard = [self._say(connection, message) for connection in self._peers]
        return all(heard)

    def _say(self, connection: socket.socket, message: dict[str, Any]) -> bool:
        try:
            connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    # What a rank hears.

    def _listen(self) -> None:
        with selectors.DefaultSelector() as selector:
            for connection in self._peers:
                selector.register(connection, selectors.EVENT_READ, connection)
            while selector.get_map():
                for key, _ in selector.select():
                    if not self._read(key.data):
                        selector.unregister(key.data)

    def _read(self, connection: socket.socket) -> bool:
        """Take in what has come; False once the connection is closed."""
        try:
            data = connection.recv(1 << 16)
        except OSError:
            data = b""
        rank = self._peers[connection]
        if not data:
            if rank not in self._over:
                self._is_first_gone = rank == 0
                self._hear(f"{self._names[rank]} ended without a word: killed, or out of memory")
            return False
        *lines, rest = (self._buffers.pop(connection, b"") + data).split(b"\n")
        self._buffers[connection] = rest
        for line in lines:
            message = json.loads(line)
            self._over.add(rank)
            if "reason" in message:
                self._hear(f"{message['failed']}: {message['reason']}")
        return True

    def _hear(self, what: str) -> None:
        """Another rank has failed: tell the rest, and end."""
        with self._lock:
            if self.failure is not None or self._is_leaving:
                return
            self.failure = RankFailed(what)
        if self.rank == 0:
            name, _, reason = what.partition(": ")
            for connection in self._peers:
                self._say(connection, {"failed": name, "reason": reason})
        # Where all ranks raise the same, each is to get as far as its own error.
        time.sleep(OWN_SECONDS)
        if self._is_leaving:
            return
        signal.pthread_kill(threading.main_thread().ident or 0, WAKE)
        time.sleep(GRACE_SECONDS)
        if self._is_leaving:
            return
        # The main thread waits in a collective that nothing ends, as NCCL's do.
        if not self.speaks_for_others:
            print(f"gradlab train: {what}", file=sys.stderr, flush=True)
        os._exit(1)

    def _wake(self, number: int, frame: FrameType | None) -> None:
        if self.failure is not None and not self._is_leaving:
            raise self.failure


def first_line(connection: socket.socket) -> bytes:
    """Up to the end of the first line, and no byte more: the rest is for who listens later."""
    line = b""
    while not line.endswith(b"\n"):
        byte = connection.recv(1)
        if not byte:
            break
        line += byte
    return line
