"""Progress of a running prompt: ComfyUI's websocket, read with the standard library.

Only what listening needs of RFC 6455: text frames in, pongs out. A broken connection ends the
stream and nothing else; whether the prompt succeeded is asked of /history.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
FINISHED = {"execution_success", "execution_error", "execution_interrupted"}


class Listener:
    """Reads the messages that a server sends to one client id; a context manager."""

    def __init__(self, url: str, client_id: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self._socket = socket.create_connection((address.hostname, address.port), timeout=600)
        self._stream = self._socket.makefile("rb")
        key = base64.b64encode(os.urandom(16)).decode()
        request = (
            f"GET /ws?clientId={client_id} HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        self._socket.sendall(request.encode())
        status = self._stream.readline()
        if b" 101 " not in status:
            raise ConnectionError(f"{url} answered {status!r} to a websocket request")
        while self._stream.readline().strip():
            pass

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self._stream.close()
        self._socket.close()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield JSON messages until the server closes the connection."""
        while True:
            head = self._stream.read(2)
            if len(head) < 2:
                return
            opcode, length = head[0] & 0x0F, head[1] & 0x7F
            if length == 126:
                (length,) = struct.unpack(">H", self._stream.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self._stream.read(8))
            payload = self._stream.read(length)
            if opcode == CLOSE:
                return
            if opcode == PING:
                self._pong(payload)
            elif opcode == TEXT:
                yield json.loads(payload)

    def _pong(self, payload: bytes) -> None:
        mask = secrets.token_bytes(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([0x80 | PONG, 0x80 | len(payload)]) + mask + masked)


@dataclass
class Bar:
    """One line in the terminal that shows the node at work and its steps."""

    titles: dict[str, str]
    """Node id -> what to call it."""
    width: int = 30

    def follow(self, listener: Listener, prompt_id: str) -> None:
        """Draw until the prompt ends."""
        for message in listener.messages():
            data = message.get("data", {})
            if data.get("prompt_id") not in (None, prompt_id):
                continue
            if message["type"] == "executing" and data.get("node"):
                self._draw(data["node"], 0, 0)
            elif message["type"] == "progress":
                self._draw(data["node"], data["value"], data["max"])
            elif message["type"] in FINISHED:
                break
        if sys.stdout.isatty():
            print()

    def _draw(self, node_id: str, value: int, maximum: int) -> None:
        title = self.titles.get(node_id, node_id)
        if maximum:
            filled = round(self.width * value / maximum)
            bar = "#" * filled + "." * (self.width - filled)
            line = f"  {title:28.28} [{bar}] {value}/{maximum}"
        else:
            line = f"  {title}"
        if sys.stdout.isatty():
            print(f"\r{line:80}", end="", flush=True)
        elif not maximum or value == maximum:
            print(line, flush=True)
