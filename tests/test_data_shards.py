"""Files, folders, shards and objects all answer with rows; what is missing is told clearly."""

import json
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_samples import LLAMA_FACTORY, SWIFT, write, write_shard
from PIL import Image

from thinktalk.train import shards
from thinktalk.train.rows import Row
from thinktalk.train.shards import Member, open_source

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("swift"), SWIFT)


def asked(row: Row, number: int = 0) -> Any:
    return row.conversation.messages[number]["content"]


def test_lines_are_found_by_number_from_any_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SCAN_BYTES", 7)  # lines reach over the borders of the scan
    path = tmp_path / "a.jsonl"
    texts = ["eins", "zwei ü", "", "drei", "vier"]
    lines = [json.dumps({"query": text, "response": "ja"}, ensure_ascii=False) for text in texts]
    path.write_bytes(("\ufeff" + "\r\n".join([lines[0], "", *lines[1:]])).encode())
    source = open_source(path)
    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(source.row, [4, 0, 1, 3] * 20))
    assert [asked(row) for row in rows[:4]] == ["vier", "eins", "zwei ü", "drei"]
    assert [source.place(i) for i in (0, 1, 4)] == [f"{path}:{line}" for line in (1, 3, 6)]
    assert rows[0].place == f"{path}:6"


def test_a_bad_line_does_not_harm_the_others(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "response": "b"}\n{"query": \n[1]\n   \n')
    source = open_source(path)
    assert asked(source.row(0)) == "a"
    with pytest.raises(ValueError, match="it is not JSON"):
        source.row(1)
    with pytest.raises(ValueError, match="it is a list"):
        source.row(2)


def test_a_folder_holds_its_files_in_the_order_of_their_names(swift: Path) -> None:
    (swift / "settings.json").write_text('{"no": "rows"}')
    source = open_source(swift)
    assert len(source) == 1 + 3 + 1 + 2 + 6
    places = [source.place(number).rsplit("/", 1)[1] for number in range(len(source))]
    expected = [("agent", 1), ("dpo", 3), ("grpo", 1), ("kto", 2), ("sft", 6)]
    assert places == [f"{name}.jsonl:{n + 1}" for name, count in expected for n in range(count)]
    assert source.row(12).conversation.messages[0]["role"] == "assistant"


def test_a_dataset_info_chooses_the_files(tmp_path: Path) -> None:
    folder = write(tmp_path, LLAMA_FACTORY)
    assert len(open_source(folder)) == 2 + 3 + 1 + 2 + 1 + 2  # v1_demo.jsonl has no entry
    chosen = open_source(folder, names=["kto_demo", "alpaca_demo"])
    assert [chosen.row(i).label for i in range(4)] == [True, False, None, None]
    assert chosen.place(1).endswith("kto_demo.jsonl:3")
    assert chosen.place(2).endswith("alpaca_demo.json: row 1")
    with pytest.raises(ValueError, match="no entry 'other'"):
        open_source(folder, names=["other"])
    (folder / "dataset_info.json").write_text('{"far": {"hf_hub_url": "a/b"}}')
    with pytest.raises(ValueError, match="far has no file_name, so it is not on this disk"):
        open_source(folder)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file_name": "a.json", "columns": {"picture": "x"}}, "unknown column 'picture'"),
        ({"file_name": "a.json", "tags": {"rolle": "x"}}, "unknown tag 'rolle'"),
        ({"file_name": "a.json", "formatting": "poem"}, "unknown formatting 'poem'"),
        ({"file_name": "b.json"}, "which is missing"),
    ],
)
def test_wrong_entries_of_dataset_info(tmp_path: Path, entry: Any, message: str) -> None:
    (tmp_path / "a.json").write_text("[]")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path)


def test_ranking_needs_both_sides_and_columns_must_be_there(tmp_path: Path) -> None:
    rows = [{"conversations": [{"from": "human", "value": "hi"}], "chosen": None}, {"other": 1}]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    entry = {"file_name": "a.json", "formatting": "sharegpt", "columns": columns}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry | {"ranking": True}}))
    with pytest.raises(ValueError, match="chosen or rejected is missing"):
        open_source(tmp_path).row(0)
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    with pytest.raises(ValueError, match="no column 'conversations'"):
        open_source(tmp_path).row(1)


def test_shards_bring_their_media(tmp_path: Path, swift: Path) -> None:
    path = swift / "part-000.tar"
    write_shard(path, swift / "media")
    try:
        source = open_source(path)
        assert len(source) == 4 and source.place(1) == f"{path}: sub/0002.json"
        first, second, third = (source.row(number) for number in range(3))
        names = [part["image"].name for part in asked(first) if part["type"] == "image"]
        assert names == ["sub/0001.right.jpg", "sub/0001.left.png"]
        picture = asked(first)[1]["image"]
        assert isinstance(picture, Member)
        assert picture.read() == (swift / "media/cat.png").read_bytes()
        assert asked(second)[0]["audio"].name == "sub/0002.question.wav"  # the speech is no prompt
        assert asked(third)[0]["audio"] == str(swift / "media/bell.wav")
        assert third.conversation.speech[1].codes.name == "sub/0003.codes.npy"
        with pytest.raises(ValueError, match=r"there is no sub/0004\.json beside sub/0004\.png"):
            source.row(3)
        assert len(open_source(swift)) == 13 + 4
    finally:
        path.unlink()


class Columns:
    """Looks like a Dataset of the datasets library: length, rows by number, decode=False media."""

    _fingerprint = "0123"

    def __init__(self, media: Path):
        picture = {"bytes": (media / "cat.png").read_bytes(), "path": None}
        sound = {"array": [0.0] * 16000, "sampling_rate": 8000}
        turns = [{"role": "user", "content": "<image><image><audio><audio>"}, TURNS[1]]
        files = {"bytes": None, "path": str(media / "bell.wav")}
        image = Image.open(media / "dog.jpg")
        self.row = {
            "messages": turns,
            "images": [picture, image],
            "audios": [sound, files],
            "videos": None,
        }

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.row


def test_objects_of_the_datasets_library(swift: Path) -> None:
    source = open_source(Columns(swift / "media"))
    row = source.row(1)
    assert row.place == "the given Columns: row 2" and source.stamp() == "0123/2"
    parts = asked(row)
    assert isinstance(parts[0]["image"], bytes) and isinstance(parts[1]["image"], Image.Image)
    array, rate = parts[2]["audio"]
    assert array.dtype == np.float32 and (len(array), rate) == (16000, 8000)
    assert parts[3]["audio"] == str(swift / "media/bell.wav")
    assert len(open_source([{"messages": TURNS}])) == 1


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    def stream() -> Iterator[int]:
        yield 1

    empty, plain = tmp_path / "empty.jsonl", tmp_path / "plain.json"
    empty.write_text("")
    plain.write_text('{"messages": []}')
    (tmp_path / "wrong.tar").write_bytes(b"no tar" * 200)
    (tmp_path / "words.txt").write_text("hi")
    with tarfile.open(tmp_path / "small.tar.gz", "w:gz"):
        pass
    (tmp_path / "small.tar.gz").rename(tmp_path / "zipped.tar")
    (tmp_path / "folder").mkdir()
    for data, message in (
        (stream(), "a generator has no length"),
        (tmp_path / "nothing.jsonl", "does not exist"),
        (empty, "holds no rows"),
        ([], "the given list holds no rows"),
        (plain, "is not a list of rows"),
        (tmp_path / "wrong.tar", "is no plain tar file"),
        (tmp_path / "zipped.tar", "is no plain tar file"),
        (tmp_path / "words.txt", "is no .jsonl, .json, .tar file"),
        (tmp_path / "folder", "holds no .jsonl, .json, .tar file"),
    ):
        with pytest.raises(ValueError, match=message):
            open_source(data)
    with pytest.raises(ValueError, match=r"no dataset_info\.json, so there are no names"):
        open_source(tmp_path / "folder", names=["a"])


def test_missing_media_are_named(swift: Path) -> None:
    def row(**media: Any) -> Row:
        kind = next(iter(media))[:-1]
        turns = [{"role": "user", "content": f"<{kind}>"}, TURNS[1]]
        return open_source([{"messages": turns, **media}], media=swift / "media").row(0)

    assert asked(row(images=["cat.png"]))[0]["image"] == str(swift / "media/cat.png")
    assert asked(row(images=["https://a.b/c.png"]))[0]["image"] == "https://a.b/c.png"
    frames = asked(row(videos=[["cat.png", "dog.jpg"]]))[0]["video"]
    assert frames == [str(swift / "media/cat.png"), str(swift / "media/dog.jpg")]
    with pytest.raises(ValueError, match=r"media/none\.wav does not exist"):
        row(audios=["none.wav"])
    with pytest.raises(ValueError, match=r"media/none\.png does not exist"):
        row(videos=[["cat.png", "none.png"]])
    with pytest.raises(ValueError, match="the audio is of type int; give a path"):
        row(audios=[7])
    with pytest.raises(ValueError, match="the image is an object without path, bytes or array"):
        row(images=[{"path": None}])


def test_stamps_tell_when_a_file_changed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"query": "a", "response": "b"}\n')
    before = open_source(path).stamp()
    assert open_source(path).stamp() == before
    path.write_text('{"query": "a", "response": "c"}\n{"query": "a", "response": "b"}\n')
    assert open_source(path).stamp() != before
