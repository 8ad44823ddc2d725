"""Pictures over the wire, end to end. The shipped spark cannot see yet, so this trains a spark that
knows two pictures: what it says about them arrives by chat and by Realtime, aloud, too.
"""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from realtime_client import realtime
from serving import serving

import thinktalk
from thinktalk.playroom import dataset
from thinktalk.serve.app import ServeOptions
from thinktalk.train.shards import open_source
from thinktalk.train.tuning import train_on

NUMBERS = {
    "steps": 60,
    "learning_rate": 2e-3,
    "warmup_steps": 5,
    "weight_decay": 0.0,
    "batch_tokens": 2048,
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    kinds = {"split": "test", "tasks": ("shape",), "speak": False, "workers": 1}
    dataset.make(folder, seed=11, num_cases=2, **kinds)  # pyright: ignore[reportArgumentType]
    return folder


@pytest.fixture(scope="module")
def asked(pictures: Path) -> list[tuple[str, str, str]]:
    """(data URI of the picture, question, answer) of each row."""
    found, source = [], open_source(pictures)
    for number in range(len(source)):
        *_, question, answer = source.row(number).conversation.messages
        image, text = question["content"]
        data = base64.b64encode(Path(image["image"]).read_bytes()).decode()
        found.append((f"data:image/png;base64,{data}", text["text"], answer["content"]))
    assert len({answer for *_, answer in found}) == 2
    return found


@pytest.fixture(scope="module")
def url(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = tmp_path_factory.mktemp("run")
    assert train_on("omni", model="spark", data=[pictures], out=out, changes=NUMBERS)
    engine = thinktalk.live(thinktalk.load(out / "model"), max_sessions=2)
    with serving(engine, ServeOptions(max_sessions=2)) as address:
        yield address


def test_chat_about_a_picture(url: str, asked: list[tuple[str, str, str]]) -> None:
    sdk = OpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
    for picture, question, answer in asked:
        content: Any = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": question},
        ]
        reply = sdk.chat.completions.create(
            model="spark", messages=[{"role": "user", "content": content}]
        )
        assert reply.choices[0].message.content == answer


def test_realtime_item_with_a_picture_is_answered_aloud(
    url: str, asked: list[tuple[str, str, str]]
) -> None:
    for picture, question, answer in asked:
        with realtime(url) as client:
            content = [
                {"type": "input_image", "image_url": picture},
                {"type": "input_text", "text": question},
            ]
            item = {"type": "message", "role": "user", "content": content}
            client.send("conversation.item.create", item=item)
            client.send("response.create")
            client.until("response.done")
            said = client.of("response.output_audio_transcript.done")[-1]["transcript"]
            assert said == answer and np.abs(client.sound().astype(int)).max() > 1000
