"""STUN and TURN servers: what the option takes, and that server and clients are told of them."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any
from urllib.request import Request, urlopen

import pytest
from aioice import stun
from aiortc import RTCPeerConnection
from scripted_engine import ScriptedEngine
from serving import serving

from thinktalk.__main__ import main, parser
from thinktalk.serve import app, webrtc
from thinktalk.serve.ice import IceServer

OUTSIDE = ("203.0.113.7", 4567)  # the address that our STUN server makes up


@pytest.mark.parametrize(
    ("word", "server"),
    [
        ("stun:stun.example.org", IceServer("stun:stun.example.org")),
        ("stuns:192.0.2.1:5349", IceServer("stuns:192.0.2.1:5349")),
        ("turn:anna:pass@turn.example.org", IceServer("turn:turn.example.org", "anna", "pass")),
        (
            "turns:17%3Aanna:a%40b%2Cc%3A@t.example:5349?transport=tcp",
            IceServer("turns:t.example:5349?transport=tcp", "17:anna", "a@b,c:"),
        ),
    ],
)
def test_servers_that_are_understood(word: str, server: IceServer) -> None:
    assert IceServer.parse(word) == server


@pytest.mark.parametrize(
    "word",
    [
        "", "example.org", "http://example.org", "stun:", "stun:a b", "stun:host:port",
        "turn:turn.example.org", "stun:anna:secret@stun.example.org", "turn:anna@turn.example.org",
        "turn:anna:secret@turn.example.org?transport=carrier-pigeon", "turn:a:secret@b:x@host",
    ],
)  # fmt: skip
def test_servers_that_are_refused(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--ice-server", word]) == 2
    said = capsys.readouterr().err
    assert said.startswith("thinktalk serve: ") and ("write" in said or "leave" in said)
    assert "secret" not in said, "a password does not belong into a log"


def test_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINKTALK_ICE_SERVER", "stun:one,turn:a:b%2C@two")
    assert parser().parse_args(["serve"]).ice_server == ["stun:one", "turn:a:b%2C@two"]


def test_without_webrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "webrtc", None)
    with pytest.raises(ValueError, match=r"pip install 'thinktalk\[serve,webrtc\]'"):
        app.ServeOptions(ice_servers=(IceServer("stun:one"),))


# ---- over the wire


@pytest.fixture
def stun_server() -> Iterator[str]:
    """A STUN server that tells everybody the same address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def serve() -> None:
            while True:
                try:
                    data, address = server.recvfrom(2048)
                except OSError:
                    return
                asked = stun.parse_message(data)
                told = stun.Message(stun.Method.BINDING, stun.Class.RESPONSE, asked.transaction_id)
                told.attributes["XOR-MAPPED-ADDRESS"] = OUTSIDE
                server.sendto(bytes(told), address)

        threading.Thread(target=serve, daemon=True).start()
        yield f"stun:127.0.0.1:{server.getsockname()[1]}"


def call(url: str) -> Any:
    """The answer to an offer of a peer without servers."""

    async def offer() -> str:
        peer = RTCPeerConnection()
        peer.createDataChannel("oai-events")
        peer.addTransceiver("audio")
        await peer.setLocalDescription(await peer.createOffer())
        await peer.close()
        return peer.localDescription.sdp

    sdp = asyncio.run(offer()).encode()
    return urlopen(Request(f"{url}/v1/realtime/calls", sdp, {"Content-Type": "application/sdp"}))


def test_the_server_asks_and_clients_are_told(
    stun_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    configured: list[Any] = []

    def watched(configuration: Any) -> RTCPeerConnection:
        configured.extend(configuration.iceServers)
        configuration.iceServers = configuration.iceServers[:1]  # nobody answers at the other
        return RTCPeerConnection(configuration)

    monkeypatch.setattr(webrtc, "RTCPeerConnection", watched)
    servers = (IceServer(stun_server), IceServer("turn:t.example", "17:anna", 'a"b'))
    with serving(ScriptedEngine(), app.ServeOptions(ice_servers=servers)) as url:
        answer = call(url)
        sdp = answer.read().decode()
        secret = json.load(urlopen(Request(f"{url}/v1/realtime/client_secrets", b"{}")))
    place = f" {OUTSIDE[0]} {OUTSIDE[1]} typ srflx"
    assert place in sdp, "the answer names the address that the STUN server saw"
    assert [(s.urls, s.username, s.credential) for s in configured] == [
        (stun_server, None, None),
        ("turn:t.example", "17:anna", 'a"b'),
    ]
    assert answer.headers["Link"] == (
        f'<{stun_server}>; rel="ice-server", <turn:t.example>; rel="ice-server"; '
        'username="17:anna"; credential="a\\"b"; credential-type="password"'
    )
    assert secret["ice_servers"] == [
        {"urls": stun_server},
        {"urls": "turn:t.example", "username": "17:anna", "credential": 'a"b'},
    ]


def test_nobody_is_asked_by_default(url_without: str) -> None:
    answer = call(url_without)
    assert "Link" not in answer.headers and "srflx" not in answer.read().decode()
    secret = json.load(urlopen(Request(f"{url_without}/v1/realtime/client_secrets", b"{}")))
    assert "ice_servers" not in secret


@pytest.fixture
def url_without() -> Iterator[str]:
    with serving(ScriptedEngine()) as url:
        yield url
