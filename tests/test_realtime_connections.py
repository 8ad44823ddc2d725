"""Realtime connections: who may come in, and what happens when they break, stall or are too many.

A scripted engine stands in for the model; the sockets are real."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from realtime_client import realtime
from scripted_engine import ScriptedEngine
from scripted_steps import Break, Say, Sing, Wait, until
from serving import serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from thinktalk.serve.app import ServeOptions
from thinktalk.serve.limits import Limits
from thinktalk.serve.outbox import Outbox

QUICK = Limits(resume_s=0.3)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine(max_sessions=2)


@pytest.fixture
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine, ServeOptions(max_sessions=2, limits=QUICK)) as address:
        yield address


def test_a_full_server_says_so_and_can_be_tried_again(engine: ScriptedEngine, url: str) -> None:
    with realtime(url), realtime(url), connect(socket(url)) as third:
        error = json.loads(third.recv())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "session_limit_reached")
        assert closed_with(third) == 1013
    until(lambda: not engine.sessions)
    with realtime(url) as client:
        client.setup()


def test_subprotocols_and_keys() -> None:
    with serving(ScriptedEngine(), ServeOptions(keys=("secret",))) as url:
        protocols = ["realtime", "openai-insecure-api-key.secret", "openai-agents-sdk.0.20"]
        with connect(socket(url), subprotocols=protocols) as open:  # type: ignore[arg-type]
            assert open.subprotocol == "realtime"
            assert json.loads(open.recv())["type"] == "session.created"
        with realtime(url, key="secret") as client:
            client.setup()
        for wrong in (["realtime"], ["realtime", "openai-insecure-api-key.wrong"]):
            with pytest.raises(InvalidStatus, match="401"):
                connect(socket(url), subprotocols=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidStatus, match="403"):
            connect(socket(url), origin="https://evil.example")  # type: ignore[arg-type]


def test_ephemeral_keys() -> None:
    with serving(ScriptedEngine(), ServeOptions(keys=("secret",))) as url:
        sdk = OpenAI(api_key="secret", base_url=f"{url}/v1")
        made = sdk.realtime.client_secrets.create(
            session={"type": "realtime", "instructions": "be kind"}
        )
        assert made.value.startswith("ek_") and made.session.type == "realtime"
        with realtime(url, key=made.value) as client:
            assert client.seen[0]["session"]["instructions"] == "be kind"
        with pytest.raises(InvalidStatus, match="401"), realtime(url, key="ek_guessed"):
            pass
        stranger = OpenAI(api_key=made.value, base_url=f"{url}/v1", max_retries=0)
        with pytest.raises(Exception, match="401"):
            stranger.models.list()


# ---- connections that break


def test_resume(engine: ScriptedEngine) -> None:
    go_on = threading.Event()
    engine.script = lambda _: (Say("one "), Sing(40), Wait(go_on), Say("two"), Sing(40))
    with serving(engine) as url:
        with connect(socket(url)) as first:
            session = json.loads(first.recv())["session"]
            first.send(json.dumps({"type": "response.create"}))
            seen = read_until(first, "response.output_audio.delta")
            cut(first)
        go_on.set()
        token, last = session["resume"]["token"], seen[2]["event_id"]
        with connect(f"{socket(url)}?resume={token}&after={last}") as second:
            hello = json.loads(second.recv())
            assert (hello["type"], hello["session"]["id"]) == ("session.created", session["id"])
            rest = read_until(second, "response.done")
            assert [event["event_id"] for event in rest[: len(seen) - 3]] == [
                event["event_id"] for event in seen[3:]
            ]
            words = [e["delta"] for e in seen[:3] + rest if e["type"].endswith("script.delta")]
            assert "".join(words) == "one two"
            second.send(json.dumps({"type": "response.create"}))
            read_until(second, "response.done")


def test_resume_replaces_a_connection_that_only_seems_alive(url: str) -> None:
    with connect(socket(url)) as first:
        session = json.loads(first.recv())["session"]
        with connect(f"{socket(url)}?resume={session['resume']['token']}") as second:
            assert json.loads(second.recv())["session"]["id"] == session["id"]
            assert closed_with(first) == 4001
            second.send(json.dumps({"type": "response.create"}))
            read_until(second, "response.done")


def test_too_late_to_resume(engine: ScriptedEngine, url: str) -> None:
    with connect(socket(url)) as first:
        session = json.loads(first.recv())["session"]
        cut(first)
    until(lambda: not engine.sessions)
    with connect(f"{socket(url)}?resume={session['resume']['token']}") as second:
        assert json.loads(second.recv())["error"]["code"] == "resume_failed"
        assert closed_with(second) == 1008


def test_a_proper_goodbye_ends_the_session(engine: ScriptedEngine) -> None:
    with serving(engine, ServeOptions(limits=Limits(resume_s=1000))) as url:
        with realtime(url):
            assert len(engine.sessions) == 1
        until(lambda: not engine.sessions)


def test_who_waits_to_resume_makes_room(engine: ScriptedEngine) -> None:
    with serving(engine, ServeOptions(limits=Limits(resume_s=1000))) as url:
        for _ in range(2):
            with connect(socket(url)) as lost:
                lost.recv()
                cut(lost)
        until(lambda: len(engine.sessions) == 2)
        with realtime(url) as client:
            client.setup()


def test_one_failing_session_hurts_no_other(engine: ScriptedEngine, url: str) -> None:
    with realtime(url) as neighbour, connect(socket(url)) as broken:
        engine.script = lambda _: (Say("a"), Break())
        broken.send(json.dumps({"type": "response.create"}))
        error = read_until(broken, "error")[-1]["error"]
        assert error["type"] == "server_error" and closed_with(broken) == 1011
        engine.script = lambda _: (Say("fine"),)
        neighbour.send("response.create")
        assert neighbour.until("response.done")["response"]["status"] == "completed"


def test_out_of_band_needs_a_free_session(url: str) -> None:
    with realtime(url) as client, realtime(url):
        client.send("response.create", response={"conversation": "none"}, event_id="a")
        error = client.until("error")["error"]
        assert (error["code"], error["event_id"]) == ("session_limit_reached", "a")
        client.send("response.create")
        client.until("response.done")


def test_sound_far_ahead_of_time_waits(engine: ScriptedEngine) -> None:
    limits = Limits(audio_s=1)
    with serving(engine, ServeOptions(limits=limits)) as url, realtime(url) as client:
        client.push(np.zeros(3 * 24_000), step_s=1)
        client.setup()  # is read after the sound, and waits for it
        assert engine.opened[-1].samples_heard == 3 * 24_000


def test_sessions_end_after_their_time(engine: ScriptedEngine) -> None:
    with serving(engine, ServeOptions(limits=Limits(session_s=0.2))) as url:
        with connect(socket(url)) as client:
            assert read_until(client, "error")[-1]["error"]["code"] == "session_expired"
            assert closed_with(client) == 1000
        until(lambda: not engine.sessions)


def test_outbox_drops_stale_sound_and_is_bounded() -> None:
    async def check() -> None:
        full: list[bool] = []
        outbox = Outbox(max_unsent=1000, on_overflow=lambda: full.append(True))
        outbox.put("a")
        outbox.put("sound", reply="r1", delta="x" * 100)
        outbox.put("sound", reply="r2", delta="y" * 100)
        outbox.drop_sound("r1")
        sent: list[dict[str, Any]] = []

        async def send(text: str) -> None:
            sent.append(json.loads(text))

        task = asyncio.create_task(outbox.run(send))
        await outbox.empty()
        assert [event.get("delta", "-")[0] for event in sent] == ["-", "y"]
        task.cancel()
        outbox.put("more", delta="z" * 2000)
        outbox.put("more")
        assert full == [True]

    asyncio.run(check())


def socket(url: str) -> str:
    return url.replace("http", "ws") + "/v1/realtime"


def read_until(open: ClientConnection, kind: str) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    while not seen or seen[-1]["type"] != kind:
        seen.append(json.loads(open.recv(timeout=60)))
    return seen


def closed_with(open: ClientConnection) -> int:
    with pytest.raises(ConnectionClosed) as caught:
        while True:
            open.recv(timeout=60)
    assert caught.value.rcvd is not None
    return caught.value.rcvd.code


def cut(open: ClientConnection) -> None:
    """Ends a connection as a broken network would: without a word."""
    open.socket.shutdown(2)
