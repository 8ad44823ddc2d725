"""Rows of LLaMA-Factory, of ms-swift and of ours become the same messages and targets."""

from pathlib import Path
from typing import Any

import pytest
from data_samples import LLAMA_FACTORY, OURS, SWIFT, write

from thinktalk.train.rows import Row, Speech, read_row
from thinktalk.train.shards import open_source

CALL = [{"name": "get_time", "arguments": {}}]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {"lf": LLAMA_FACTORY, "swift": SWIFT, "ours": OURS}
    return {name: write(tmp_path_factory.mktemp(name), files) for name, files in found.items()}


def rows(folder: Path, name: str) -> list[Row]:
    """Of an entry of dataset_info.json, or of a file."""
    source = open_source(folder, names=[name]) if "." not in name else open_source(folder / name)
    return [source.row(number) for number in range(len(source))]


def said(row: Row, side: str = "conversation") -> list[tuple[str, Any, bool]]:
    """(role, content, learned) of every message, media by their file names."""
    conversation = getattr(row, side)
    pairs = zip(conversation.messages, conversation.learned, strict=True)
    return [(m["role"], short(m["content"]), learned) for m, learned in pairs]


def short(content: Any) -> Any:
    if isinstance(content, str):
        return content
    return [part["text"] if part["type"] == "text" else medium(part) for part in content]


def medium(part: dict[str, Any]) -> str:
    extra = {k: v for k, v in part.items() if k not in ("type", part["type"])}
    if "sound" in extra:
        extra["sound"] = Path(extra["sound"]).name
    name = f"{part['type']}:{Path(part[part['type']]).name}"
    return f"{name} {extra}" if extra else name


def test_llama_factory_pictures_and_turns(folders: dict[str, Path]) -> None:
    first, second = rows(folders["lf"], "mllm_demo")
    assert said(first) == [
        ("user", ["image:cat.png", "Which animal is it?"], False),
        ("assistant", "A cat.", True),
        ("user", ["And here?", "image:dog.jpg"], False),
        ("assistant", "A dog.", True),
    ]
    between = ["Compare ", "image:cat.png", " and ", "image:dog.jpg", "."]
    assert said(second)[0] == ("user", between, False)
    assert Path(first.conversation.messages[0]["content"][0]["image"]).is_file()


def test_the_literal_pair_is_a_video_with_its_sound(folders: dict[str, Path]) -> None:
    paired, apart, own = (said(row)[0][1] for row in rows(folders["lf"], "omni_demo"))
    assert paired == ["video:silent.mp4 {'sound': 'bell.wav'}", "What is said?"]
    assert apart == ["video:silent.mp4", "Then listen: ", "audio:rain.flac"]
    assert own == ["video:talking.mp4 {'audio_in_video': True}", "What do you hear?"]


def test_llama_factory_tools_alpaca_and_columns(folders: dict[str, Path]) -> None:
    (row,) = rows(folders["lf"], "tools_demo")
    assert [role for role, *_ in said(row)] == ["system", "user", "assistant", "tool", "assistant"]
    assert row.conversation.messages[2]["tool_calls"] == CALL
    assert row.tools[0]["name"] == "get_time" and said(row)[0][1] == "Be short."
    first, second = rows(folders["lf"], "alpaca_demo")
    assert said(first) == [
        ("user", "Name a colour.\nNot blue.", False),
        ("assistant", "Red.", True),
    ]
    assert said(second)[0] == ("user", "And a shape?", False)
    assert "system" in second.extra


def test_llama_factory_preferences(folders: dict[str, Path]) -> None:
    (pair,) = rows(folders["lf"], "dpo_demo")
    prompt = [
        ("user", ["image:cat.png", "What is it?"], False),
        ("assistant", "An animal.", False),
        ("user", "Which one?", False),
    ]
    assert said(pair) == [*prompt, ("assistant", "A cat.", True)]
    assert said(pair, "rejected") == [*prompt, ("assistant", "A fish.", True)]
    assert [row.label for row in rows(folders["lf"], "kto_demo")] == [True, False]


def test_llama_factory_v1_parts(folders: dict[str, Path]) -> None:
    plain, pair, call = rows(folders["lf"], "v1_demo.jsonl")
    assert said(plain) == [
        ("user", ["image:cat.png", "What is it?"], False),
        ("assistant", ["A cat."], True),
    ]
    assert said(pair)[1][1] == ["A bell."] and said(pair, "rejected")[1][1] == ["A drum."]
    assert said(pair)[0] == said(pair, "rejected")[0] == ("user", ["audio:bell.wav"], False)
    assert call.conversation.messages[1]["tool_calls"] == CALL


def test_swift_forms(folders: dict[str, Path]) -> None:
    both, heard, weighted, pairs, history, document = rows(folders["swift"], "sft.jsonl")
    parts = ["image:cat.png", "What is in the image, ", "video:silent.mp4", "what in the video?"]
    assert said(both)[1] == ("user", parts, False)
    assert said(heard)[0][1] == ["audio:spoken.mp3", "What did it say?"]
    assert [learned for *_, learned in said(weighted)] == [False, False, False, True]
    assert [text for _, text, _ in said(pairs)] == "Be kind.|Hi|Hello.|Bye|See you.".split("|")
    assert [text for _, text, _ in said(history)] == "Hi|Hello.|What is red?|A rose.".split("|")
    assert said(document) == [("assistant", ["image:cat.png", "is a cat, says the book."], True)]


def test_swift_preferences(folders: dict[str, Path]) -> None:
    by_text, by_messages, by_picture = rows(folders["swift"], "dpo.jsonl")
    assert said(by_text) == said(by_messages)
    assert said(by_text, "rejected") == said(by_messages, "rejected")
    assert said(by_text, "rejected")[1] == ("assistant", "A puppy.", True)
    assert said(by_picture, "rejected")[0][1] == ["image:dog.jpg", "What is this?"]
    unwanted, wanted = rows(folders["swift"], "kto.jsonl")
    assert (unwanted.label, wanted.label) == (False, True)
    assert [learned for *_, learned in said(wanted)] == [False, False, False, True]


def test_swift_prompts_and_agents(folders: dict[str, Path]) -> None:
    (prompt,) = rows(folders["swift"], "grpo.jsonl")
    assert prompt.is_prompt and prompt.extra == {"solution": "ding"}
    (agent,) = rows(folders["swift"], "agent.jsonl")
    roles = [role for role, *_ in said(agent)]
    assert roles == ["user", "assistant", "tool", "tool", "assistant"]
    message = agent.conversation.messages[1]
    assert message["content"] == "I look."
    assert [call["arguments"]["x"] for call in message["tool_calls"]] == [1, 2]
    assert said(agent)[2][1] == ['{"images": "', "image:dog.jpg", '"}']


def test_speech_by_turn_by_row_and_rejected(folders: dict[str, Path]) -> None:
    turns, whole, pair, silent = rows(folders["ours"], "spoken.jsonl")
    speech = turns.conversation.speech
    assert speech[1] == Speech("Ethan", codes=[5, 0, 999, 7])
    assert speech[3].speaker == "Chelsie" and Path(speech[3].codes).name == "codes.npy"
    assert Path(whole.conversation.speech[1].wave).name == "rain.flac"
    assert pair.rejected is not None
    assert pair.conversation.speech[1].codes == [1, 2]
    assert pair.rejected.speech[1].codes == [3, 4, 5]
    assert pair.conversation.messages == pair.rejected.messages
    assert not silent.conversation.speech


USER = {"role": "user", "content": "hi"}
REPLY = {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{"role": "user", "content": "<image>"}, REPLY]}, "1 <image> tags for 0"),
        ({"messages": [USER, REPLY], "audios": ["a.wav"]}, "0 <audio> tags for 1 audios"),
        (
            {"messages": [{"role": "user", "content": "<video><audio>"}], "videos": ["a.mp4"]},
            "1 <audio> tags for 0",
        ),
        ({"messages": [{"role": "user", "content": "<image>"}], "images": ["no.png"]}, "not there"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, "has the role 'bot'"),
        ({"messages": []}, "no messages"),
        ({"text": 3}, "no messages"),
        ({"messages": "hi"}, "messages are a str"),
        (["hi"], "is a list"),
        ({"messages": [USER, REPLY | {"codes": [1]}]}, "no speaker"),
        (
            {"messages": [USER | {"codes": [1], "speaker": "Ethan"}, REPLY]},
            "a user turn has speech",
        ),
        (
            {"messages": [USER, REPLY | {"codes": [1], "speech": "a.wav", "speaker": "Ethan"}]},
            "both speech and codes",
        ),
        ({"messages": [USER, REPLY], "codes": [[1], [2]], "speaker": "E"}, "for 2 turns, but"),
        ({"messages": [USER, REPLY | {"loss_scale": 0.5}]}, "loss_scale 0.5"),
        ({"messages": [USER, REPLY], "rejected_response": "hello"}, "are the same"),
        ({"messages": [USER], "label": True}, "label but no reply"),
        ({"messages": [USER, {"role": "tool_call", "content": "{"}]}, "tool call is not JSON"),
        ({"messages": [USER, REPLY], "tools": "["}, "list of tools is not JSON"),
        ({"messages": [USER, REPLY], "objects": {"ref": ["a"]}}, "grounding objects"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "type 'smell'"),
    ],
)
def test_bad_rows_say_what_is_wrong(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_row(row, find=find)


def find(name: Any, kind: str) -> Any:
    if name == "no.png":
        raise ValueError("no.png is not there")
    return name


def test_parts_without_a_source_take_from_the_lists() -> None:
    content = [{"type": "text", "text": "a"}, {"type": "image"}, "<audio>b"]
    row = {"messages": [{"role": "user", "content": content}], "image": "i.png", "audio": ["s.wav"]}
    messages = read_row(row, find=find).conversation.messages
    assert short(messages[0]["content"]) == ["a", "image:i.png", "audio:s.wav", "b"]


def test_options_of_the_row_reach_its_media() -> None:
    row = {
        "messages": [{"role": "user", "content": "<image><video>"}, REPLY],
        "images": ["i.png"],
        "videos": ["v.mp4"],
        "chat_template_kwargs": {"max_pixels": 4000, "fps": 1.0, "enable_thinking": False},
    }
    image, video = read_row(row, find=find).conversation.messages[0]["content"]
    assert image == {"type": "image", "image": "i.png", "max_pixels": 4000}
    assert video == {"type": "video", "video": "v.mp4", "max_pixels": 4000, "fps": 1.0}


def test_labels_of_other_trainings_stay_aside() -> None:
    row = read_row({"messages": [USER, REPLY], "label": 1}, find=find)
    assert row.label is None and row.extra == {"label": 1}
    assert [learned for *_, learned in said(row)] == [False, True]


def test_columns_of_lists_are_rows() -> None:
    """Older versions of the datasets library give a list of turns as a dict of lists."""
    columns = {"role": ["user", "assistant"], "content": ["hi", "hello"]}
    row = read_row({"messages": columns, "images": None}, find=find)
    assert said(row) == [("user", "hi", False), ("assistant", "hello", True)]
