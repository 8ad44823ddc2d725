"""A server for the page whose part the test plays: it serves the page's files and lets the test
read every client event and send every server event. For what a real server does on bad days."""

import base64
import json
import queue
import threading
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Page
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

import thinktalk

WEB = Path(thinktalk.__file__).parent / "serve" / "web"
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
}
RATE_HZ = 24_000
HANGS_S = 120.0  # nothing waits this long unless it hangs
ENOUGH_EVENTS = 3000  # a minute of sound


class ScriptedServer:
    """`with ScriptedServer() as server:` serves on server.url; server.accept() is the next client.

    key: what clients must know, or None.
    """

    def __init__(self, *, key: str | None = None) -> None:
        self.key = key
        # Close codes, and codes of the error event before, for the next connections.
        self.refusals: list[tuple[int, str]] = []
        self._clients: queue.Queue[Client] = queue.Queue()
        self._sessions = 0
        self._server = serve(
            self._converse,
            "127.0.0.1",
            0,
            process_request=self._respond,
            subprotocols=["realtime"],  # type: ignore[list-item]
            max_size=None,
        )
        port = self._server.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def __enter__(self) -> "ScriptedServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def accept(self, *, session: str | None = None) -> "Client":
        """The next client, greeted; session: the id it gets, by default one of its own."""
        client = self._clients.get(timeout=HANGS_S)
        self._sessions += 1
        name = session or f"sess_{self._sessions}"
        client.send(
            "session.created",
            session={"id": name, "model": "spark", "resume": {"token": name, "seconds": 60}},
        )
        return client

    def _respond(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.split("?")[0]
        if path.startswith("/v1/") and not self._admits(request):
            return connection.respond(HTTPStatus.UNAUTHORIZED, "the key is missing or wrong\n")
        if path == "/v1/realtime":
            return None
        if path == "/v1/voices":
            return answer(b'{"data": [{"id": "Chelsie"}, {"id": "Ethan"}]}', "application/json")
        if path == "/v1/models":
            return answer(b'{"data": [{"id": "spark"}]}', "application/json")
        file = WEB / ("index.html" if path == "/" else path[1:])
        if not file.is_file():
            return connection.respond(HTTPStatus.NOT_FOUND, f"{path}\n")
        return answer(file.read_bytes(), KINDS[file.suffix])

    def _admits(self, request: Request) -> bool:
        offered = request.headers.get("Sec-WebSocket-Protocol", "")
        bearer = request.headers.get("Authorization", "")
        return self.key is None or self.key in (
            bearer.removeprefix("Bearer "),
            offered.rpartition("openai-insecure-api-key.")[2],
        )

    def _converse(self, connection: ServerConnection) -> None:
        client = Client(connection)
        if self.refusals:
            close, code = self.refusals.pop(0)
            client.send("error", error={"code": code, "message": code})
            connection.close(close)
            return
        self._clients.put(client)
        with suppress(ConnectionClosed):
            for text in connection:
                client.received.put(json.loads(text))


class Client:
    """One connection: what it sent, and what it is sent."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.received: queue.Queue[dict[str, Any]] = queue.Queue()
        request = connection.request
        assert request is not None
        self.path = request.path
        self.num_events = 0

    @property
    def last_event(self) -> str:
        return f"event_{self.num_events}"

    def send(self, kind: str, **fields: Any) -> None:
        self.num_events += 1
        self._connection.send(json.dumps({"type": kind, "event_id": self.last_event, **fields}))

    def expect(self, kind: str) -> dict[str, Any]:
        """The next event of this type; those before it are passed over."""
        passed = []
        while (event := self.received.get(timeout=HANGS_S))["type"] != kind:
            passed.append(event["type"])
            assert len(passed) < ENOUGH_EVENTS, f"no {kind} among {set(passed)}"
        return event

    def close(self, code: int, reason: str = "") -> None:
        self._connection.close(code, reason)

    def vanish(self) -> None:
        """The connection breaks without a word, as when a cable is cut."""
        self._connection.socket.shutdown(2)

    # ---- whole passages of the protocol, in the order of the golden events

    def user_speaks(self, item: str, *, start_ms: int = 0) -> None:
        self.send("input_audio_buffer.speech_started", audio_start_ms=start_ms, item_id=item)

    def user_stops(self, item: str, *, end_ms: int, transcript: str) -> None:
        self.send("input_audio_buffer.speech_stopped", audio_end_ms=end_ms, item_id=item)
        self.send("input_audio_buffer.committed", item_id=item, previous_item_id=None)
        content = [{"type": "input_audio", "transcript": None}]
        message = {"id": item, "type": "message", "role": "user", "content": content}
        self.send("conversation.item.added", previous_item_id=None, item=message)
        kind = "conversation.item.input_audio_transcription.completed"
        usage = {"type": "duration", "seconds": 1.0}
        self.send(kind, item_id=item, content_index=0, transcript=transcript, usage=usage)

    def reply_begins(self, response: str, item: str, *, after: str | None = None) -> None:
        self.send("response.created", response={"id": response, "status": "in_progress"})
        message = {"id": item, "type": "message", "role": "assistant", "content": []}
        self.send("response.output_item.added", response_id=response, output_index=0, item=message)
        self.send("conversation.item.added", previous_item_id=after, item=message)

    def reply_says(self, response: str, item: str, *, text: str, samples: np.ndarray) -> None:
        """samples: float32 [n] at 24 kHz."""
        place = {"response_id": response, "item_id": item, "output_index": 0, "content_index": 0}
        self.send("response.output_audio_transcript.delta", delta=text, **place)
        pcm = (samples * 32767).astype("<i2").tobytes()
        self.send("response.output_audio.delta", delta=base64.b64encode(pcm).decode(), **place)

    def reply_ends(self, response: str, item: str, *, status: str = "completed") -> None:
        place = {"response_id": response, "item_id": item, "output_index": 0, "content_index": 0}
        self.send("response.output_audio.done", **place)
        output = [{"id": item, "type": "message", "role": "assistant", "content": []}]
        done = {"id": response, "status": status, "status_details": None, "output": output}
        self.send("response.done", response=done)


def answer(body: bytes, kind: str) -> Response:
    headers = Headers({"Content-Type": kind, "Content-Length": str(len(body))})
    return Response(HTTPStatus.OK, "OK", headers, body)


def talk(page: Page, server: ScriptedServer) -> Client:
    """The user begins to talk; who calls has set up the session."""
    page.click("#talk")
    client = server.accept()
    client.expect("session.update")
    return client


def tone(seconds: float, *, hz: float = 440.0, volume: float = 0.4) -> np.ndarray:
    """float32 [n] at 24 kHz."""
    return (volume * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE_HZ)) / RATE_HZ)).astype(
        np.float32
    )
