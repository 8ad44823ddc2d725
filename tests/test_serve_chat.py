"""/v1/chat/completions with OpenAI's SDK over a real socket; a scripted engine is the model."""

import base64
import io
import json
import threading
import urllib.request
import wave
from collections.abc import Iterator
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
from media_samples import film
from openai import BadRequestError, OpenAI, RateLimitError, UnprocessableEntityError
from PIL import Image
from scripted_engine import ScriptedEngine, ScriptedSession
from scripted_steps import HELLO, Break, Call, Say, Sing, Step, Wait, until
from serving import serving

from thinktalk.media.decode import load_audio
from thinktalk.media.encode import encode
from thinktalk.options import Sampling
from thinktalk.serve.app import ServeOptions
from thinktalk.serve.chat import grouped
from thinktalk.serve.limits import Limits

ASK: Any = [{"role": "user", "content": "hi"}]
SPOKEN: Any = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine(max_sessions=2)


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine) -> Iterator[str]:
    limits = Limits(queue_s=0.2, audio_s=5, frames=3, image_megapixels=0.01)
    with serving(engine, ServeOptions(max_sessions=2, limits=limits)) as address:
        yield address


@pytest.fixture(scope="module")
def sdk(url: str) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


@pytest.fixture(autouse=True)
def usual_script(engine: ScriptedEngine) -> Iterator[None]:
    engine.script = lambda _: HELLO
    yield
    until(lambda: not engine.sessions)  # every request leaves its session behind


def ask(sdk: OpenAI, **fields: Any) -> Any:
    return sdk.chat.completions.create(**{"model": "any", "messages": ASK, **fields})


def test_words(engine: ScriptedEngine, sdk: OpenAI) -> None:
    reply = ask(sdk, seed=5, temperature=0.5, top_p=0.9, max_tokens=9)
    assert reply.choices[0].message.content == "hello there."
    assert reply.choices[0].finish_reason == "stop" and reply.model == "scripted"
    assert reply.usage.prompt_tokens == 12 and reply.usage.completion_tokens == 3
    assert reply.usage.prompt_tokens_details.cached_tokens == 2
    settings = engine.opened[-1].settings
    assert settings.text == Sampling(temperature=0.5, top_p=0.9)
    assert (settings.seed, settings.max_text_tokens, settings.speak) == (5, 9, False)
    assert settings.turn_detection is None


def test_words_as_a_stream(sdk: OpenAI) -> None:
    chunks = list(ask(sdk, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    words = [c.choices[0].delta.content or "" for c in chunks[:-1]]
    assert [w for w in words if w] == ["hello ", "there."]
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert not chunks[-1].choices and chunks[-1].usage.total_tokens == 15
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_speech(engine: ScriptedEngine, sdk: OpenAI) -> None:
    message = ask(sdk, **SPOKEN).choices[0].message
    assert message.content is None and message.audio.transcript == "hello there."
    with wave.open(io.BytesIO(base64.b64decode(message.audio.data))) as file:
        assert (file.getframerate(), file.getnframes()) == (24_000, 9600)
    assert engine.opened[-1].settings.voice == "Chelsie"
    history = [*ASK, {"role": "assistant", "audio": {"id": message.audio.id}}, *ASK]
    ask(sdk, messages=history)
    said = engine.opened[-1].items[1]
    assert (said.role, said.content) == (
        "assistant",
        {"role": "assistant", "content": "hello there."},
    )
    history[1] = {"role": "assistant", "audio": {"id": "audio_unknown"}}
    with pytest.raises(BadRequestError, match="unknown or has expired"):
        ask(sdk, messages=history)


@pytest.mark.parametrize("format", ["wav", "mp3", "flac", "opus", "aac", "pcm16"])
def test_speech_as_a_stream(sdk: OpenAI, format: str) -> None:
    audio = {"voice": "ethan", "format": format}
    deltas = [
        chunk.choices[0].delta.model_extra.get("audio") or {}
        if chunk.choices[0].delta.audio is None
        else chunk.choices[0].delta.audio.model_dump(exclude_none=True)
        for chunk in ask(sdk, modalities=["text", "audio"], audio=audio, stream=True)
    ]
    assert "".join(d.get("transcript", "") for d in deltas) == "hello there."
    data = b"".join(base64.b64decode(d["data"]) for d in deltas if "data" in d)
    assert [d for d in deltas if d][-1].keys() == {"id", "expires_at"}
    if format == "pcm16":
        assert len(data) == 2 * 9600
    else:
        sound = load_audio(data, sample_rate=24_000)
        assert abs(len(sound) - 9600) < 2400 and np.abs(sound).max() > 0.1


def test_function_calls(engine: ScriptedEngine, sdk: OpenAI) -> None:
    raw = '<tool_call>\n{"name": "look_up", "arguments": {"word": "é"}}\n</tool_call>'
    engine.script = lambda _: (Say(raw), Call("look_up", {"word": "é"}))
    choice = ask(sdk, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    call = choice.message.tool_calls[0]
    assert call.function.name == "look_up" and json.loads(call.function.arguments) == {"word": "é"}
    chunks = list(ask(sdk, tools=TOOLS, stream=True))
    deltas = [c.choices[0].delta for c in chunks]
    assert [d.tool_calls[0].index for d in deltas if d.tool_calls] == [0]
    assert not any(d.content for d in deltas)
    engine.script = lambda session: (Say(str(len(session.items))),)
    results = [
        {"role": "tool", "tool_call_id": call.id, "content": "yes"},
        {"role": "tool", "tool_call_id": "other", "content": "no"},
    ]
    history = [*ASK, choice.message.model_dump(), *results]
    assert ask(sdk, messages=history, tools=TOOLS).choices[0].message.content == "3"
    assert [m["tool_call_id"] for m in engine.opened[-1].items[2].content] == [call.id, "other"]
    ask(sdk, messages=history, tools=TOOLS, tool_choice="none")
    assert engine.opened[-1].settings.tools == ()


def test_what_is_no_call_after_all_is_shown(engine: ScriptedEngine, sdk: OpenAI) -> None:
    engine.script = lambda _: (Say("a <tool_call>{broken"), Say("</tool_call> b"))
    assert ask(sdk, tools=TOOLS).choices[0].message.content == (
        "a  b<tool_call>{broken</tool_call>"
    )


@pytest.mark.parametrize("spoken", [False, True])
def test_stop_strings(engine: ScriptedEngine, sdk: OpenAI, spoken: bool) -> None:
    endless = (Say("one tw"), Sing(40), Say("o three"), Sing(40), Wait(threading.Event()))
    engine.script = lambda _: endless
    fields = SPOKEN if spoken else {}
    choice = ask(sdk, stop=["two", "x"], **fields).choices[0]
    text = choice.message.audio.transcript if spoken else choice.message.content
    assert text == "one " and choice.finish_reason == "stop"
    if spoken:  # what was kept is said anew, and nothing else
        with wave.open(io.BytesIO(base64.b64decode(choice.message.audio.data))) as file:
            assert file.getnframes() == 0.3 * 24_000


def test_stop_strings_that_never_come(engine: ScriptedEngine, sdk: OpenAI) -> None:
    engine.script = lambda _: (Say("one t"), Say("w"), Say("."), Sing(40))
    choice = ask(sdk, stop="two", **SPOKEN).choices[0]
    assert choice.message.audio.transcript == "one tw."


def test_media_of_every_kind(engine: ScriptedEngine, sdk: OpenAI) -> None:
    picture, sound = png(8, 6), encode(np.zeros(2400, np.float32))
    parts = [
        {"type": "text", "text": "what?"},
        {"type": "image_url", "image_url": {"url": uri(picture), "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": b64(sound), "format": "wav"}},
        {"type": "audio_url", "audio_url": {"url": uri(sound, "audio/wav")}},
        {"type": "video", "video": [uri(picture), uri(picture)]},
    ]
    ask(sdk, messages=[{"role": "user", "content": parts}])
    seen = engine.opened[-1].items[0].content["content"]
    assert [part["type"] for part in seen] == ["text", "image", "audio", "audio", "video"]
    assert seen[1]["image"].shape == (6, 8, 3)
    assert seen[2]["audio"].shape == seen[3]["audio"].shape == (1600,)
    assert [frame.shape for frame in seen[4]["video"]] == [(6, 8, 3)] * 2


def test_films(engine: ScriptedEngine, sdk: OpenAI) -> None:
    short, long = film("mp4", audio="aac"), film("mp4", seconds=41, fps=5)
    question = media("video_url", uri(short, "video/mp4"))
    question[0]["content"][0]["fps"] = 1
    ask(sdk, messages=question, extra_body={"use_audio_in_video": False})
    (part,) = engine.opened[-1].items[0].content["content"]
    assert part == {"type": "video", "video": short, "fps": 1, "audio_in_video": False}
    with pytest.raises(UnprocessableEntityError, match="longer than 40 s"):
        ask(sdk, messages=media("video_url", uri(long, "video/mp4")))
    question[0]["content"][0] |= {"fps": None, "total_pixels": 1 << 40}
    with pytest.raises(BadRequestError, match="unknown option 'total_pixels'"):
        ask(sdk, messages=question)


def test_system_prompts(engine: ScriptedEngine, sdk: OpenAI) -> None:
    system = [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}]
    ask(sdk, messages=[*system, *ASK])
    session = engine.opened[-1]
    assert session.settings.system == "a\nb"
    assert [item.role for item in session.items] == ["user", "assistant"]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"modalities": ["audio"]}, "audio"),
    ({"temperature": 9}, "temperature"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages"),
    ({"extra_body": {"colour": 1}}, "colour"),
    ({"modalities": ["audio"], "audio": {"voice": "Zed", "format": "wav"}}, "voice"),
    ({"extra_body": {"mm_processor_kwargs": {"fps": 1}}}, "mm_processor_kwargs.fps"),
    ({"messages": [{"role": "user", "content": [{"type": "file"}]}]}, "messages.0.content.0"),
]


@pytest.mark.parametrize("fields, param", REFUSED, ids=str)
def test_refused_in_words(sdk: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        ask(sdk, **fields)
    error: Any = caught.value.body
    assert error["type"] == "invalid_request_error" and error["param"] == param
    assert param.split(".")[-1] in error["message"] or param == "messages"


def media(kind: str, url: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: {"url": url}}]}]


def test_media_refused(url: str, sdk: OpenAI) -> None:
    huge = png(200, 100)  # 20 000 pixels, more than this server takes; few bytes
    long = encode(np.zeros(6 * 24_000, np.float32), format="flac")
    cases: list[tuple[str, str, type[Exception], str]] = [
        ("image_url", uri(huge), UnprocessableEntityError, "200 x 100 pixels"),
        ("image_url", uri(b"nonsense"), UnprocessableEntityError, "not a picture"),
        ("audio_url", uri(long, "audio/flac"), UnprocessableEntityError, "lasts longer than 5 s"),
        ("video_url", uri(b"nonsense"), UnprocessableEntityError, "cannot be read as video"),
        ("image_url", "/etc/passwd", BadRequestError, "not valid base64"),
        ("image_url", "file:///etc/passwd", BadRequestError, "not valid base64"),
        ("image_url", f"{url}/icon.png", BadRequestError, "not on the public internet"),
        ("image_url", "http://localhost:1/a", BadRequestError, "not on the public internet"),
        ("image_url", "http://[::ffff:127.0.0.1]/a", BadRequestError, "not on the public"),
        ("image_url", "http://169.254.169.254/a", BadRequestError, "not on the public internet"),
    ]
    for kind, source, error, words in cases:
        with pytest.raises(error, match=words):
            ask(sdk, messages=media(kind, source))


def test_failures_have_their_own_status(engine: ScriptedEngine, sdk: OpenAI, url: str) -> None:
    engine.script = lambda _: (Say("a"), Break())
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps({"messages": ASK}).encode()
    )
    with pytest.raises(HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 500
    assert json.loads(caught.value.read())["error"]["type"] == "server_error"
    with pytest.raises(Exception, match="made a mistake"):
        list(ask(sdk, stream=True))


def test_a_full_server(engine: ScriptedEngine, sdk: OpenAI) -> None:
    go_on = threading.Event()

    def script(_: ScriptedSession) -> tuple[Step, ...]:
        return Say("a"), Wait(go_on)

    engine.script = script
    streams = [ask(sdk, stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    with pytest.raises(RateLimitError) as caught:
        ask(sdk)
    assert caught.value.response.headers["retry-after"] == "2"
    threading.Timer(0.05, go_on.set).start()
    assert ask(sdk).choices[0].message.content == "a"  # waits its turn
    for stream in streams:
        stream.close()


def test_a_client_that_leaves_frees_its_session(engine: ScriptedEngine, sdk: OpenAI) -> None:
    engine.script = lambda _: (Say("a"), Wait(threading.Event()))
    stream = ask(sdk, stream=True)
    next(stream)
    stream.close()
    until(lambda: not engine.sessions)
    with pytest.raises(Exception, match="timed out"):
        ask(sdk.with_options(timeout=0.3))
    until(lambda: not engine.sessions)


def test_results_of_one_round_stay_together() -> None:
    roles = ["user", "tool", "tool", "assistant", "tool"]
    messages = [{"role": role} for role in roles]
    assert grouped(messages) == [
        messages[0],
        messages[1:3],
        messages[3],
        messages[4:],
    ]


def png(width: int, height: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(held, "PNG")
    return held.getvalue()


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{b64(data)}"
