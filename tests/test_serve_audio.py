"""/v1/audio/... with OpenAI's SDK over a real socket; a scripted engine is the model."""

import base64
import io
import json
import urllib.request
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from openai import BadRequestError, OpenAI, UnprocessableEntityError
from scripted_engine import ScriptedEngine
from scripted_steps import until
from serving import serving

from thinktalk.media.decode import load_audio
from thinktalk.media.encode import encode
from thinktalk.serve.app import ServeOptions
from thinktalk.serve.limits import Limits

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture(scope="module")
def url(engine: ScriptedEngine) -> Iterator[str]:
    with serving(engine, ServeOptions(limits=Limits(audio_s=60, audio_mb=4))) as address:
        yield address


@pytest.fixture(scope="module")
def sdk(url: str) -> OpenAI:
    return OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)


@pytest.fixture(autouse=True)
def no_session_stays(engine: ScriptedEngine) -> Iterator[None]:
    yield
    until(lambda: not engine.sessions)


# ---- speech


@pytest.mark.parametrize("format", ["wav", "mp3", "flac", "opus", "aac", "pcm"])
def test_speech(engine: ScriptedEngine, sdk: OpenAI, format: Any) -> None:
    with sdk.audio.speech.with_streaming_response.create(
        model="tts-1", voice="onyx", input="good morning", response_format=format
    ) as reply:
        assert reply.headers["content-type"].startswith("audio/")
        data = b"".join(reply.iter_bytes())
    if format == "pcm":
        assert len(data) == 2 * 0.3 * 24_000
    else:
        sound = load_audio(data, sample_rate=24_000)
        assert abs(len(sound) - 7200) < 2400 and np.abs(sound).max() > 0.1
    session = engine.opened[-1]
    assert session.settings.voice == "Ethan" and session.items[-1].text == "good morning"


def test_speech_as_events(url: str) -> None:
    body = {"input": "hi", "voice": "Chelsie", "response_format": "pcm", "stream_format": "sse"}
    request = urllib.request.Request(f"{url}/v1/audio/speech", json.dumps(body).encode())
    lines = urllib.request.urlopen(request).read().decode().split("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
    assert {event["type"] for event in events[:-1]} == {"speech.audio.delta"}
    assert sum(len(base64.b64decode(event["audio"])) for event in events[:-1]) == 14_400
    assert events[-1]["type"] == "speech.audio.done"
    assert events[-1]["usage"] == {"input_tokens": 3, "output_tokens": 15, "total_tokens": 18}


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"input": ""}, "input"),
        ({"input": "  "}, "input"),
        ({"input": "a" * 4097}, "input"),
        ({"speed": 1.5}, "speed"),
        ({"instructions": "whisper"}, "instructions"),
        ({"voice": "Zed"}, "voice"),
        ({"response_format": "amr"}, "response_format"),
    ],
    ids=str,
)
def test_speech_refused(sdk: OpenAI, fields: dict[str, Any], param: str) -> None:
    usual: dict[str, Any] = {"model": "m", "voice": "alloy", "input": "hi"}
    with pytest.raises(BadRequestError) as caught:
        sdk.audio.speech.create(**{**usual, **fields})
    assert caught.value.param == param


# ---- transcriptions


def recording(*stretches: tuple[float, float]) -> io.BytesIO:
    """A WAV file with a tone from ... to ... s, and half a second of silence at its end."""
    seconds = max(end for _, end in stretches) + 0.5
    samples = np.zeros(round(seconds * RATE_HZ), np.float32)
    for start, end in stretches:
        samples[round(start * RATE_HZ) : round(end * RATE_HZ)] = 0.5
    file = io.BytesIO(encode(samples, sample_rate=RATE_HZ))
    file.name = "a.wav"
    return file


TWO = (0.2, 1.0), (2.0, 3.0)


def transcribe(sdk: OpenAI, file: io.BytesIO, **fields: Any) -> Any:
    return sdk.audio.transcriptions.create(model="whisper-1", file=file, **fields)


def test_json_and_text(engine: ScriptedEngine, sdk: OpenAI) -> None:
    reply = transcribe(sdk, recording(*TWO))
    assert reply.text == "what did you say"
    assert reply.usage.type == "duration" and reply.usage.seconds == 3.5
    assert transcribe(sdk, recording(*TWO), response_format="text") == "what did you say\n"
    assert engine.opened[-1].samples_heard == 3.5 * 24_000
    settings = engine.opened[-1].settings
    assert settings.turn_detection is None and not settings.speak


def test_srt(sdk: OpenAI) -> None:
    assert transcribe(sdk, recording(*TWO), response_format="srt") == (
        "1\n00:00:00,200 --> 00:00:01,480\nwhat did you say\n\n"
        "2\n00:00:02,000 --> 00:00:03,480\nwhat did you say\n"
    )


def test_vtt(sdk: OpenAI) -> None:
    text = transcribe(sdk, recording((0.2, 1.0)), response_format="vtt")
    assert text == "WEBVTT\n\n00:00:00.200 --> 00:00:01.480\nwhat did you say\n"


def test_verbose_json(sdk: OpenAI) -> None:
    reply = transcribe(
        sdk, recording(*TWO), response_format="verbose_json", language="en",
        timestamp_granularities=["segment"],
    )  # fmt: skip
    assert reply.text == "what did you say what did you say"
    assert [(s.id, s.start, s.end) for s in reply.segments] == [(0, 0.2, 1.48), (1, 2.0, 3.48)]
    assert (reply.duration, reply.language) == (3.5, "en")


def test_nothing_but_silence(sdk: OpenAI) -> None:
    silence = recording((0.0, 0.0))
    assert transcribe(sdk, silence, response_format="srt") == ""


def test_a_long_recording_is_cut_at_pauses(engine: ScriptedEngine, sdk: OpenAI) -> None:
    file = recording((1.0, 2.0), (30.0, 31.0))
    assert transcribe(sdk, file).text == "what did you say what did you say"
    assert [item.role for item in engine.opened[-1].items] == ["user", "user"]


def test_as_a_stream(sdk: OpenAI) -> None:
    fields: Any = {"stream": True, "chunking_strategy": "auto"}
    events = list(transcribe(sdk, recording(*TWO), **fields))
    deltas = [event.delta for event in events[:-1]]
    assert "".join(deltas) == events[-1].text == "what did you say what did you say"
    assert len(deltas) == 8 and events[-1].type == "transcript.text.done"


def test_other_kinds_of_files(sdk: OpenAI) -> None:
    samples = np.full(24_000, 0.5, np.float32)
    for format in ("mp3", "flac", "opus"):
        file = io.BytesIO(encode(samples, format=format))
        file.name = f"a.{format}"
        assert transcribe(sdk, file).text == "what did you say"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"response_format": "diarized_json"}, "response_format"),
        ({"timestamp_granularities": ["word"]}, "timestamp_granularities"),
        ({"prompt": "names"}, "prompt"),
        ({"temperature": 0.5}, "temperature"),
        ({"include": ["logprobs"]}, "include"),
        ({"stream": True, "response_format": "srt"}, "stream"),
        ({"extra_body": {"colour": "red"}}, "colour"),
    ],
    ids=str,
)
def test_refused_in_words(sdk: OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        transcribe(sdk, recording((0, 1)), **fields)
    assert caught.value.param == param


def test_recordings_refused(sdk: OpenAI, url: str) -> None:
    nonsense = io.BytesIO(b"nonsense" * 100)
    nonsense.name = "a.wav"
    with pytest.raises(UnprocessableEntityError, match="cannot be read as sound"):
        transcribe(sdk, nonsense)
    long = io.BytesIO(encode(np.zeros(61 * 24_000, np.float32), format="flac"))
    long.name = "a.flac"
    with pytest.raises(UnprocessableEntityError, match="longer than 60 s"):
        transcribe(sdk, long)
    large = io.BytesIO(bytes(6 << 20))
    large.name = "a.wav"
    with pytest.raises(Exception, match="larger than"):
        transcribe(sdk, large)
    with pytest.raises(BadRequestError, match="file is missing"):
        sdk.post("/audio/transcriptions", body={}, cast_to=object)


def test_the_file_that_was_said(sdk: OpenAI) -> None:
    """What speech writes, transcriptions read."""
    data = sdk.audio.speech.create(model="m", voice="alloy", input="hi", response_format="wav")
    with wave.open(io.BytesIO(data.content)) as file:
        assert file.getframerate() == 24_000
    file = io.BytesIO(data.content)
    file.name = "a.wav"
    assert transcribe(sdk, file).text == "what did you say"
