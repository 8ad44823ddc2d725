"""Training data as people have them, written by hand: one folder of LLaMA-Factory's, one of
ms-swift's, one of ours, with small real media beside them.

Names and shapes of the rows follow the two projects' documentation; the words are ours.
"""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import media_samples as samples
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tiny import TOKEN_IDS

from thinktalk.media.encode import write_wav
from thinktalk.train.rows import Row, read_row
from thinktalk.train.shards import Folder

MEDIA = ("cat.png", "dog.jpg", "bell.wav", "rain.flac", "silent.mp4", "talking.mp4", "spoken.mp3")

LLAMA_FACTORY_INFO = """{
  "mllm_demo": {
    "file_name": "mllm_demo.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant"}
  },
  "omni_demo": {
    "file_name": "omni_demo.json",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "videos": "videos", "audios": "audios"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant"}
  },
  "tools_demo": {
    "file_name": "tools_demo.json",
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "tools": "tools", "system": "system"}
  },
  "alpaca_demo": {"file_name": "alpaca_demo.json"},
  "dpo_demo": {
    "file_name": "dpo_demo.json",
    "ranking": true,
    "formatting": "sharegpt",
    "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected",
                "images": "pictures"}
  },
  "kto_demo": {
    "file_name": "kto_demo.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "kto_tag": "label"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user",
             "assistant_tag": "assistant", "system_tag": "system"}
  }
}
"""

LLAMA_FACTORY = {
    "mllm_demo.json": """[
  {"messages": [
     {"content": "<image>Which animal is it?", "role": "user"},
     {"content": "A cat.", "role": "assistant"},
     {"content": "And here?<image>", "role": "user"},
     {"content": "A dog.", "role": "assistant"}],
   "images": ["media/cat.png", "media/dog.jpg"]},
  {"messages": [
     {"content": "Compare <image> and <image>.", "role": "user"},
     {"content": "One purrs.", "role": "assistant"}],
   "images": ["media/cat.png", "media/dog.jpg"]}
]
""",
    "omni_demo.json": """[
  {"messages": [
     {"content": "<video><audio>What is said?", "role": "user"},
     {"content": "Nothing but a tone.", "role": "assistant"}],
   "videos": ["media/silent.mp4"], "audios": ["media/bell.wav"]},
  {"messages": [
     {"content": "<video>Then listen: <audio>", "role": "user"},
     {"content": "It rains.", "role": "assistant"}],
   "videos": ["media/silent.mp4"], "audios": ["media/rain.flac"]},
  {"messages": [
     {"content": "<video><audio>What do you hear?", "role": "user"},
     {"content": "A tone.", "role": "assistant"}],
   "videos": ["media/talking.mp4"], "audios": ["media/talking.mp4"]}
]
""",
    "tools_demo.json": """[
  {"conversations": [
     {"from": "human", "value": "What time is it?"},
     {"from": "function_call", "value": "{\\"name\\": \\"get_time\\", \\"arguments\\": {}}"},
     {"from": "observation", "value": "{\\"hour\\": 4}"},
     {"from": "gpt", "value": "It is four."}],
   "tools": "[{\\"name\\": \\"get_time\\", \\"description\\": \\"Time.\\", \\"parameters\\": {}}]",
   "system": "Be short."}
]
""",
    "alpaca_demo.json": """[
  {"instruction": "Name a colour.", "input": "Not blue.", "output": "Red."},
  {"instruction": "And a shape?", "input": "", "output": "A circle.",
   "system": "not read, for no column is named so"}
]
""",
    "dpo_demo.json": """[
  {"conversations": [
     {"from": "human", "value": "<image>What is it?"},
     {"from": "gpt", "value": "An animal."},
     {"from": "human", "value": "Which one?"}],
   "chosen": {"from": "gpt", "value": "A cat."},
   "rejected": {"from": "gpt", "value": "A fish."},
   "pictures": ["media/cat.png"]}
]
""",
    "kto_demo.jsonl": """\
{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}], "label": true}

{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "4"}], "label": false}
""",  # noqa: E501
    "v1_demo.jsonl": """\
{"messages": [{"role": "user", "content": [{"type": "image_url", "value": "media/cat.png"}, {"type": "text", "value": "What is it?"}], "loss_weight": 0.0}, {"role": "assistant", "content": [{"type": "text", "value": "A cat."}], "loss_weight": 1.0}]}
{"chosen_messages": [{"role": "user", "content": [{"type": "audio_url", "value": "media/bell.wav"}]}, {"role": "assistant", "content": [{"type": "text", "value": "A bell."}]}], "rejected_messages": [{"role": "user", "content": [{"type": "audio_url", "value": "media/bell.wav"}]}, {"role": "assistant", "content": [{"type": "text", "value": "A drum."}]}]}
{"messages": [{"role": "user", "content": [{"type": "text", "value": "The time?"}]}, {"role": "assistant", "content": [{"type": "tool_call", "value": "{\\"name\\": \\"get_time\\", \\"arguments\\": {}}"}]}], "tools": "[{\\"name\\": \\"get_time\\"}]"}
""",  # noqa: E501
}

SWIFT = {
    "sft.jsonl": """\
{"messages": [{"role": "system", "content": "You are useful."}, {"role": "user", "content": "<image>What is in the image, <video>what in the video?"}, {"role": "assistant", "content": "A cat, and a square."}], "images": ["media/cat.png"], "videos": ["media/silent.mp4"]}
{"messages": [{"role": "user", "content": "<audio>What did it say?"}, {"role": "assistant", "content": "Nothing."}], "audios": ["media/spoken.mp3"]}
{"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi.", "loss": false}, {"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", "loss": true}]}
{"system": "Be kind.", "conversation": [{"human": "Hi", "assistant": "Hello."}, {"human": "Bye", "assistant": "See you."}]}
{"query": "What is red?", "response": "A rose.", "history": [["Hi", "Hello."]]}
{"messages": [{"role": "assistant", "content": "<image>is a cat, says the book."}], "images": "media/cat.png"}
""",  # noqa: E501
    "dpo.jsonl": """\
{"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A kitten."}], "images": ["media/cat.png"], "rejected_response": "A puppy."}
{"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A kitten."}], "images": ["media/cat.png"], "rejected_messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A puppy."}], "rejected_images": ["media/cat.png"]}
{"messages": [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A kitten."}], "images": ["media/cat.png"], "rejected_images": ["media/dog.jpg"]}
""",  # noqa: E501
    "kto.jsonl": """\
{"messages": [{"role": "user", "content": "The weather?"}, {"role": "assistant", "content": "No idea."}], "label": false}
{"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "Plus 1?"}, {"role": "assistant", "content": "3"}], "label": true}
""",  # noqa: E501
    "grpo.jsonl": """\
{"messages": [{"role": "user", "content": "<audio>Repeat it."}], "audios": ["media/bell.wav"], "solution": "ding"}
""",  # noqa: E501
    "agent.jsonl": """\
{"tools": "[{\\"type\\": \\"function\\", \\"function\\": {\\"name\\": \\"click\\"}}]", "messages": [{"role": "user", "content": "<image>What time is it?"}, {"role": "assistant", "content": "I look."}, {"role": "tool_call", "content": "{\\"name\\": \\"click\\", \\"arguments\\": {\\"x\\": 1}}"}, {"role": "tool_call", "content": "{\\"name\\": \\"click\\", \\"arguments\\": {\\"x\\": 2}}"}, {"role": "tool_response", "content": "{\\"images\\": \\"<image>\\"}"}, {"role": "tool_response", "content": "ok"}, {"role": "assistant", "content": "Eleven."}], "images": ["media/cat.png", "media/dog.jpg"]}
""",  # noqa: E501
}

OURS = {
    "spoken.jsonl": """\
{"messages": [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "hello.", "codes": [5, 0, 999, 7], "speaker": "Ethan"}, {"role": "user", "content": "again"}, {"role": "assistant", "content": "once more, hello.", "codes": "codes.npy", "speaker": "Chelsie"}], "audios": ["media/bell.wav"]}
{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello."}], "audios": [], "speech": "media/rain.flac", "speaker": "Chelsie"}
{"messages": [{"role": "user", "content": "say yes"}, {"role": "assistant", "content": "yes."}], "codes": [1, 2], "rejected_codes": [3, 4, 5], "speaker": "Ethan"}
{"messages": [{"role": "user", "content": "<video>when?"}, {"role": "assistant", "content": "now."}], "videos": ["media/talking.mp4"], "speech": null, "speaker": "Ethan"}
""",  # noqa: E501
}


def write_media(folder: Path) -> None:
    """The files of MEDIA: half a second to two seconds, 28 to 84 pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(samples.picture(56, 84)).save(folder / "cat.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # lies on its side
    Image.fromarray(samples.picture(60, 90, seed=3)).save(folder / "dog.jpg", exif=turned)
    write_wav(folder / "bell.wav", samples.tone(1.0, 16000), 16000)
    (folder / "silent.mp4").write_bytes(samples.film("mp4", seconds=2.0))
    (folder / "talking.mp4").write_bytes(samples.film("mp4", audio="aac", seconds=2.0))
    for name in ("rain.flac", "spoken.mp3"):
        container = name.split(".")[1]
        codec = {"flac": "flac", "mp3": "libmp3lame"}[container]
        sound = samples.film(container, video=None, audio=codec, seconds=0.5, rate=24000)
        (folder / name).write_bytes(sound)


def write(folder: Path, files: dict[str, str]) -> Path:
    """Sample files with their media; the folder."""
    write_media(folder / "media")
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if files is LLAMA_FACTORY:
        (folder / "dataset_info.json").write_text(LLAMA_FACTORY_INFO, encoding="utf-8")
    if files is OURS:
        np.save(folder / "codes.npy", np.arange(6, dtype=np.int32))
    return folder


def write_shard(path: Path, media: Path) -> None:
    """A tar file in the manner of webdataset: names by key, whole names, own media, no row."""
    ask = {"role": "user", "content": "<image><image>Which is the cat?"}
    hear = {"role": "user", "content": "<audio>What is it?"}
    answer = {"role": "assistant", "content": "The first."}
    rows = {
        "sub/0001": {"messages": [ask, answer], "images": ["right.jpg", "0001.left.png"]},
        "sub/0002": {"messages": [hear, answer]},
        "sub/0003": {
            "messages": [hear, answer],
            "audios": ["media/bell.wav"],
            "codes": "codes.npy",
            "speaker": "Ethan",
        },
    }
    codes = io.BytesIO()
    np.save(codes, np.array([4, 5, 6]))
    members = {
        **{f"{key}.json": json.dumps(row).encode() for key, row in rows.items()},
        "sub/0001.left.png": (media / "cat.png").read_bytes(),
        "sub/0001.right.jpg": (media / "dog.jpg").read_bytes(),
        "sub/0002.question.wav": (media / "bell.wav").read_bytes(),
        "sub/0002.speech.flac": (media / "rain.flac").read_bytes(),
        "sub/0003.codes.npy": codes.getvalue(),
        "sub/0004.png": b"no row",
    }
    with tarfile.open(path, "w") as tar:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))


def row_of(*turns: str | list[Any], **more: Any) -> Row:
    """User and assistant in turns; a turn is its content."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": turn} for n, turn in enumerate(turns)]
    return read_row({"messages": messages, **more}, find=Folder(Path()))


def text(ids: NDArray[np.int64]) -> str:
    names = {number: token for token, number in TOKEN_IDS.items()}
    letters = {n: bytes([byte]) for n, byte in byte_of().items()}
    return b"".join(letters.get(i) or names[i].encode() for i in ids.tolist()).decode()


def byte_of() -> dict[int, int]:
    """The tiny tokenizer's ids are the letters of the byte alphabet in order."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    letters = {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(hidden)}
    return {n: letters[letter] for n, letter in enumerate(sorted(letters))}
