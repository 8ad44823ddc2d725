"""What surrounds the endpoints: keys, origins, limits, errors, figures, the page; remote media."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from scripted_steps import Say, Sing, Wait, until
from serving import serving

from thinktalk.serve import fetch as fetching
from thinktalk.serve.app import ServeOptions
from thinktalk.serve.fetch import fetch, is_public, resolve
from thinktalk.serve.limits import Limits
from thinktalk.serve.schema import ApiError

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "hi"}]}
Reply = tuple[int, dict[str, str], bytes]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    options = ServeOptions(limits=Limits(request_mb=0.01, body_s=0.3))
    with serving(ScriptedEngine(), options) as address:
        yield address


def ask(url: str, *, body: Any = None, method: str | None = None, **headers: str) -> Reply:
    """Status, headers in lower case, body."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        reply = urlopen(Request(url, data, names, method=method))
    except HTTPError as error:
        reply = error
    found = {name.lower(): value for name, value in reply.headers.items()}
    return reply.status or 0, found, reply.read()


def error_of(reply: Reply) -> dict[str, Any]:
    error = json.loads(reply[2])["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def test_what_the_server_says_about_itself(url: str) -> None:
    health = json.loads(ask(f"{url}/health")[2])
    assert (health["status"], health["model"], health["max_sessions"]) == ("ok", "scripted", 8)
    models = json.loads(ask(f"{url}/v1/models")[2])
    assert [model["id"] for model in models["data"]] == ["scripted"]
    assert json.loads(ask(f"{url}/v1/models/scripted")[2]) == models["data"][0]
    assert error_of(ask(f"{url}/v1/models/gpt-9"))["code"] == "model_not_found"
    voices = json.loads(ask(f"{url}/v1/voices")[2])
    assert [voice["id"] for voice in voices["data"]] == ["Chelsie", "Ethan"]


def test_metrics(url: str) -> None:
    ask(url + CHAT, body=ASK)
    page = ask(f"{url}/metrics")[2].decode()
    assert f'thinktalk_requests_total{{path="{CHAT}",status="200"}} 1.0' in page
    assert 'thinktalk_latency_seconds_count{endpoint="chat",stage="first_text"} 1.0' in page
    assert "thinktalk_engine_thinker_blocks_free 8.0" in page
    assert "thinktalk_sessions " in page and "thinktalk_waiting 0.0" in page


def test_docs_describe_every_endpoint(url: str) -> None:
    paths = json.loads(ask(f"{url}/openapi.json")[2])["paths"]
    assert {CHAT, "/v1/audio/speech", "/v1/audio/transcriptions"} <= paths.keys()
    body = paths[CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "messages" in body["required"] and "$ref" not in json.dumps(body)
    assert ask(f"{url}/docs")[0] == 200


def test_the_page(url: str) -> None:
    status, headers, body = ask(url)
    assert status == 200 and b"<html" in body
    assert "default-src 'self'" in headers["content-security-policy"]
    assert error_of(ask(f"{url}/../../etc/passwd"))["type"] == "invalid_request_error"
    assert ask(f"{url}/nothing")[0] == 404


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"7", b'{"messages": 7}', b"\xff\xfe", b'{"messages":["\\ud800"]}']
)
def test_bodies_that_are_none(url: str, body: bytes) -> None:
    reply = ask(url + CHAT, body=body)
    assert reply[0] == 400 and error_of(reply)["type"] == "invalid_request_error"


def test_requests_have_a_size_and_a_time(url: str) -> None:
    assert ask(url + CHAT, body=b"a" * 20_000)[0] == 413
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{"
        slow.sendall(head.encode())
        assert b" 408 " in slow.recv(100)
    with socket.create_connection((host, int(port))) as endless:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n\r\n"
        endless.sendall(head.encode() + b"4000\r\n" + b"a" * 0x4000 + b"\r\n")
        assert b" 413 " in endless.recv(100)


def test_keys() -> None:
    with serving(ScriptedEngine(), ServeOptions(keys=("one", "two"))) as url:
        for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Bearer "}):
            reply = ask(f"{url}/v1/models", **headers)
            assert reply[0] == 401 and error_of(reply)["code"] == "invalid_api_key"
            assert reply[1]["www-authenticate"] == "Bearer"
        assert ask(f"{url}/v1/models", Authorization="Bearer two")[0] == 200
        assert ask(url)[0] == ask(f"{url}/health")[0] == ask(f"{url}/metrics")[0] == 200


def test_origins(url: str) -> None:
    reply = ask(url + CHAT, body=ASK, Origin="https://evil.example")
    assert reply[0] == 403 and error_of(reply)["code"] == "forbidden_origin"
    assert ask(url + CHAT, body=ASK, Origin=url)[0] == 200
    reply = ask(f"{url}/v1/models", Host="evil.example")  # a name that leads here
    assert reply[0] == 403 and error_of(reply)["code"] == "forbidden_host"
    allowed = ServeOptions(origins=("https://good.example",))
    with serving(ScriptedEngine(), allowed) as url:
        origin = {"Origin": "https://good.example"}
        status, headers, _ = ask(url + CHAT, body=ASK, **origin)
        assert status == 200
        assert headers["access-control-allow-origin"] == "https://good.example"
        question = {"Access_Control_Request_Method": "POST", **origin}
        assert ask(url + CHAT, method="OPTIONS", **question)[0] == 204
        assert ask(f"{url}/v1/models", Host="good.example")[0] == 200


def test_a_reader_that_does_not_read_is_left() -> None:
    # more sound than all buffers on the way hold, and a reply that never ends by itself
    engine = ScriptedEngine(lambda s: (Say("a"), *[Sing(100_000)] * 4, Wait(s.never)))
    with serving(engine, ServeOptions(limits=Limits(unread_s=0.2))) as url:
        host, port = url.removeprefix("http://").split(":")
        audio = {"modalities": ["audio"], "audio": {"voice": "alloy", "format": "pcm16"}}
        body = json.dumps({**ASK, **audio, "stream": True}).encode()
        with socket.socket() as idle:
            idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            idle.connect((host, int(port)))
            head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            idle.sendall(head.encode() + body)
            until(lambda: bool(engine.opened) and engine.opened[-1].is_over)


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from("messages model n stream modalities audio stop tools seed".split()),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5)
            | st.sampled_from(["user", "text", "audio", "wav"]),
            lambda inner: st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner),
            max_leaves=8,
        ),
    )
)  # fmt: skip
def test_noise_never_breaks_the_server(url: str, body: dict[str, Any]) -> None:
    for path in (CHAT, "/v1/audio/speech", "/v1/realtime/client_secrets"):
        assert ask(url + path, body=body)[0] < 500


# ---- remote media


@pytest.mark.parametrize(
    "ip, public",
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        *[(ip, False) for ip in "127.0.0.1 10.1.2.3 192.168.0.1 172.16.0.1 0.0.0.0".split()],
        *[(ip, False) for ip in "169.254.169.254 100.64.0.1 224.0.0.1".split()],
        *[(ip, False) for ip in "::1 fe80::1%eth0 fc00::1 ::ffff:127.0.0.1".split()],
        *[(ip, False) for ip in "64:ff9b::7f00:1 2002:7f00:1::".split()],
    ],
)  # fmt: skip
def test_addresses(ip: str, public: bool) -> None:
    assert is_public(ip) is public


def test_every_address_of_a_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ips = ["93.184.216.34", "10.0.0.1"]
    found = [(0, 0, 0, "", (ip, 80)) for ip in ips]
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ApiError, match="not on the public internet"):
        resolve("http://two.example/a", remote="public")
    del found[1]
    assert resolve("http://two.example/a?b", remote="public").path == "/a?b"


class Site(BaseHTTPRequestHandler):
    """/data has some bytes, /to?URL redirects, /loop to itself, /endless never ends."""

    def do_GET(self) -> None:
        name, _, query = self.path.partition("?")
        if name in ("/to", "/loop"):
            self.send_response(302)
            self.send_header("Location", query or "/loop")
            self.end_headers()
            return
        self.send_response(404 if name == "/missing" else 200)
        self.end_headers()
        pieces = 100_000 if name == "/endless" else 1
        try:
            for _ in range(pieces):
                self.wfile.write(b"data" * 100)
        except OSError:
            pass

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_fetching(site: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fetch(f"{site}/to?/data", max_bytes=1000, remote="any") == b"data" * 100
    refusals = {
        f"{site}/loop": "redirects too often",
        f"{site}/missing": "answered 404",
        f"{site}/endless": "larger than",
        f"{site}/to?file:///etc/passwd": "not an http or https address",
        "http://no.such.host.invalid/": "the host is unknown",
        "ftp://example.org/": "not an http or https address",
    }
    for url, words in refusals.items():
        with pytest.raises(ApiError, match=words):
            fetch(url, max_bytes=100_000, remote="any")
    with pytest.raises(ApiError, match="switched off"):
        fetch(f"{site}/data", max_bytes=1000, remote="off")
    # a public site that redirects into the private network
    monkeypatch.setattr(fetching, "is_public", lambda ip: ip != "127.0.0.2")
    assert fetch(f"{site}/data", max_bytes=1000, remote="public")
    elsewhere = site.replace("127.0.0.1", "127.0.0.2")
    with pytest.raises(ApiError, match="not on the public internet"):
        fetch(f"{site}/to?{elsewhere}/data", max_bytes=1000, remote="public")


def test_limits_by_name() -> None:
    assert Limits().changed(["video_s=60", "queue=1"]) == Limits(video_s=60, queue=1)
    for wrong in ("colour=1", "video_s", "video_s=long", "video_s=-1"):
        with pytest.raises(ValueError, match="limit"):
            Limits().changed([wrong])
