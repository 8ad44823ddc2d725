"""The official chat template, media and tools in it, and tool calls in replies."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from thinktalk.media.chat import (
    DEFAULT_SYSTEM_PROMPT,
    SPEECH_SYSTEM_PROMPT,
    Control,
    Medium,
    Piece,
    SpokenIds,
    ToolCall,
    as_messages,
    parse_tool_calls,
    render,
)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter – now",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
WEATHER_LINE = (
    '{"type": "function", "function": {"name": "get_weather", "description": "Wetter – now", '
    '"parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}'
)
PLACEHOLDERS = {"image": "<|IMAGE|>", "audio": "<|AUDIO|>", "video": "<|VIDEO|>"}


def text_of(pieces: list[Piece]) -> str:
    """The prompt as the official template writes it."""
    out = ""
    for piece in pieces:
        if isinstance(piece, Control):
            out += piece.name
        else:
            out += PLACEHOLDERS[piece.kind] if isinstance(piece, Medium) else piece
    return out


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


def media_of(pieces: list[Piece]) -> list[Medium]:
    return [piece for piece in pieces if isinstance(piece, Medium)]


def test_default_system_prompt() -> None:
    assert text_of(render([{"role": "user", "content": "Hi"}])) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert DEFAULT_SYSTEM_PROMPT == "You are a helpful assistant."


def test_official_speech_prompt() -> None:
    assert SPEECH_SYSTEM_PROMPT == (
        "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of "
        "perceiving auditory and visual inputs, as well as generating text and speech."
    )


def test_own_system_message_wins() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    for system in (None, "other"):
        assert text_of(render(messages, system=system)).startswith(
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi"
        )
    assert text_of(render(messages[1:], system="other")).startswith(
        "<|im_start|>system\nother<|im_end|>\n"
    )
    assert "developer" not in text_of(render([{"role": "developer", "content": "x"}, messages[1]]))


def test_several_turns_with_media() -> None:
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "S"}]},
        *user({"type": "image", "image": "a.png"}, {"type": "text", "text": "What?"}),
        {"role": "assistant", "content": "This."},
        *user({"type": "audio", "audio": "b.wav"}, {"type": "video", "video": "c.mp4"}),
    ]
    pieces = render(messages)
    assert text_of(pieces) == (
        "<|im_start|>system\nS<|im_end|>\n"
        "<|im_start|>user\n<|vision_bos|><|IMAGE|><|vision_eos|>What?<|im_end|>\n"
        "<|im_start|>assistant\nThis.<|im_end|>\n"
        "<|im_start|>user\n<|audio_bos|><|AUDIO|><|audio_eos|>"
        "<|vision_bos|><|VIDEO|><|vision_eos|><|im_end|>\n<|im_start|>assistant\n"
    )
    assert [(m.kind, m.source) for m in media_of(pieces)] == [
        ("image", "a.png"),
        ("audio", "b.wav"),
        ("video", "c.mp4"),
    ]
    assert not text_of(render(messages, reply=False)).endswith("assistant\n")


@pytest.mark.parametrize(
    ("part", "kind", "source"),
    [
        ({"type": "image", "image": "a"}, "image", "a"),
        ({"image": "a"}, "image", "a"),
        ({"type": "image_url", "image_url": "a"}, "image", "a"),
        ({"type": "image_url", "image_url": {"url": "a", "detail": "high"}}, "image", "a"),
        ({"type": "input_image", "image_url": "a"}, "image", "a"),
        ({"type": "audio_url", "audio_url": {"url": "a"}}, "audio", "a"),
        (
            {"type": "input_audio", "input_audio": {"data": "QUJD", "format": "wav"}},
            "audio",
            "data:audio/wav;base64,QUJD",
        ),
        (
            {"type": "input_audio", "input_audio": {"data": "data:;base64,QUJD"}},
            "audio",
            "data:;base64,QUJD",
        ),
        ({"type": "video_url", "video_url": {"url": "a"}}, "video", "a"),
        ({"type": "video", "video": ["a", "b"]}, "video", ["a", "b"]),
    ],
)
def test_spellings_of_parts(part: dict[str, Any], kind: str, source: Any) -> None:
    (medium,) = media_of(render(user(part)))
    assert (medium.kind, medium.source, dict(medium.options)) == (kind, source, {})


def test_options_of_parts() -> None:
    part = {"type": "video", "video": "a", "nframes": 8, "video_start": 1, "max_pixels": None}
    (medium,) = media_of(render(user(part | {"use_audio_in_video": False})))
    assert medium.options == {"num_frames": 8, "start": 1, "audio_in_video": False}
    (medium,) = media_of(render(user({"type": "audio", "audio": "a", "audio_end": 2.5})))
    assert medium.options == {"end": 2.5}
    with pytest.raises(ValueError, match=r"message 1 \(user\) has the unknown video option 'nfps'"):
        render(user({"type": "video", "video": "a", "nfps": 2}))


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "no messages"),
        ([{"role": "king", "content": "x"}], "message 1 has the role 'king'"),
        ([{"content": "x"}], "message 1 has the role None"),
        ([{"role": "user", "content": " "}], r"message 1 \(user\) is empty"),
        ([{"role": "user", "content": []}], r"message 1 \(user\) is empty"),
        ([{"role": "user"}], r"message 1 \(user\) is empty"),
        ([{"role": "user", "content": 5}], "content of type int"),
        ([{"role": "user", "content": [5]}], "part of type int"),
        ([{"role": "user", "content": "x", "contents": "y"}], "unknown key 'contents'"),
        (user({"type": "smell", "smell": "x"}), "part of type 'smell'"),
        (user({"type": "image"}), "without its image"),
        (user({"type": "text", "text": 5}), "not just text"),
        (user({"type": "input_audio", "input_audio": {"format": "wav"}}), "without url or data"),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], "only the assistant"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "without a name"),
    ],
)
def test_bad_messages_are_refused(messages: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        render(messages)


def test_tools() -> None:
    messages = [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}]
    expected = (
        "<|im_start|>system\nS\n\n# Tools\n\nYou may call one or more functions to assist with the "
        "user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:"
        f"\n<tools>\n{WEATHER_LINE}\n</tools>\n\nFor each function call, return a json object with "
        "function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    pieces = render(messages, tools=[WEATHER])
    assert text_of(pieces) == expected
    assert pieces.count(Control("<tool_call>")) == 2
    for same in ({"type": "function", **WEATHER["function"]}, WEATHER["function"]):
        assert text_of(render(messages, tools=[same])) == expected
    with pytest.raises(ValueError, match="not a function with a name"):
        render(messages, tools=[{"type": "function", "function": {}}])


@pytest.mark.parametrize("arguments", ['{"city": "Köln"}', {"city": "Köln"}])
def test_calls_and_results(arguments: Any) -> None:
    call = {"id": "1", "type": "function"}
    messages = [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "tool_calls": [
                call | {"function": {"name": "get_weather", "arguments": arguments}},
                {"name": "now", "arguments": {}},
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
        {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "noon"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"name": "now", "arguments": ""}]},
        {"role": "tool", "content": ""},
    ]
    assert text_of(render(messages, system="S")) == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nWeather?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        '<|im_start|>assistant\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
        "<|im_end|>\n<|im_start|>user\n<tool_response>\n\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_parsing_of_calls() -> None:
    reply = (
        'Sure.\n<tool_call>\n{"name": "a", "arguments": {"x": {"y": "}"}}}\n</tool_call>\n'
        '<tool_call>{"name": "b"}</tool_call><tool_call>\n{"name": "c", "arguments": {}}\n'
    )
    assert parse_tool_calls(reply) == [
        ToolCall("a", {"x": {"y": "}"}}),
        ToolCall("b", {}),
        ToolCall("c", {}),  # its end was cut off
    ]
    for malformed in (
        "no call",
        "<tool_call>{name: a}</tool_call>",
        '<tool_call>{"name": 5}</tool_call>',
        '<tool_call>{"name": "a", "arguments": "x"}</tool_call>',
        '<tool_call>\n{"name": "a", "argum',
    ):
        assert parse_tool_calls(malformed) == []


def test_round_trip_of_calls() -> None:
    call = {"name": "f", "arguments": {"text": 'quote " and \\ and </tool_call>', "n": 1.5}}
    pieces = render([{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert parse_tool_calls(text_of(pieces)) == [ToolCall(call["name"], call["arguments"])]


def test_plain_lists(tmp_path: Path) -> None:
    image, film, wave = np.zeros((4, 4, 3)), np.zeros((2, 4, 4, 3)), np.zeros(9)
    inputs = ["What is a.png?", "b.png", "https://x.org/c.mp4", "and", "d.txt", wave, image, film]
    inputs += [(wave, 8000), Image.new("L", (3, 3)), tmp_path / "my film.mkv"]
    (message,) = as_messages(inputs)
    assert message["role"] == "user"
    kinds = [part["type"] for part in message["content"]]
    assert kinds == "text image video text audio image video audio image video".split()
    assert message["content"][3]["text"] == "and\nd.txt"
    assert as_messages("Hello")[0]["content"] == [{"type": "text", "text": "Hello"}]
    chat = [{"role": "user", "content": "x"}]
    assert as_messages(chat) == chat
    for bad, says in (
        ([*chat, "x"], "not both"),
        ([b"x"], "type bytes says not what it is"),
        ([tmp_path / "x.abc"], "no extension of a known medium"),
    ):
        with pytest.raises(ValueError, match=says):
            as_messages(bad)


# ---- what of a reply is spoken

CALL = '<tool_call>\n{"name": "f"}\n</tool_call>'


@pytest.mark.parametrize(
    ("pieces", "count"),
    [
        (["one", " two"], 2),
        (["", "é", "", "!"], 4),
        ([CALL], 0),
        (["\n", CALL, "one"], 0),
        (["<tool", "_call", ">\n", '{"'], 0),
        (["one. ", CALL, "two"], 1),
        (["one. <tool", "_call>", " {"], 0),
        (["one.", " ", "<tool_call>{"], 2),
        (["<", "b", ">"], 3),
        (["1 ", "<", " 2"], 3),
        (["<tool_call>", " is", " a tag"], 3),
        (["<tool_call>", "<tool_call>", "{"], 1),
        (["\n"], 1),
        (["<tool_call>", "\n"], 2),
        ([], 0),
    ],
)
def test_ids_that_are_spoken(pieces: list[str], count: int) -> None:
    """As soon as they are certain, and never taken back."""
    spoken, seen = SpokenIds(), [0]
    for piece in pieces:
        spoken.push(piece)
        seen.append(spoken.count)
    spoken.finish()
    assert seen == sorted(seen) and seen[-1] <= spoken.count == count
    assert spoken.ended == ("{" in "".join(pieces))


def test_ordinary_words_are_certain_at_once() -> None:
    spoken = SpokenIds()
    for number, piece in enumerate(["Yes", ",", " 1", " <=", " 2", "\n"], 1):
        spoken.push(piece)
        assert spoken.count == number
