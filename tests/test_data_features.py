"""Features are made once, come back bit for bit, and stay within their bound; headers tell lengths.

The same cache is used by several processes at once.
"""

import errno
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import media_samples as samples
import numpy as np
import pytest
from data_samples import write_media
from PIL import Image
from tiny import tiny_config, write_companions

from thinktalk.config import DecoderConfig
from thinktalk.media import encode
from thinktalk.media.chat import Medium
from thinktalk.media.image import Processor
from thinktalk.media.prompt import Prompt
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.train import features
from thinktalk.train.features import FeatureCache
from thinktalk.train.parts import MediaReader
from thinktalk.train.shards import Member

CONFIG = replace(
    tiny_config("7b").thinker_config, text_config=DecoderConfig(max_position_embeddings=4096)
)
PROCESSOR = Processor(video_min_pixels=56 * 56, video_max_pixels=56 * 84)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_media(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_companions(folder)
    return Tokenizer.from_folder(folder)


def reader(
    tokenizer: Tokenizer, cache: FeatureCache | None = None, *, hear: bool = True, **changes: Any
) -> MediaReader:
    processor = replace(PROCESSOR, **changes)
    return MediaReader(tokenizer, CONFIG, processor, hear, cache=cache)


def all_media(media: Path) -> dict[str, Medium]:
    member = Member(media / "bell.wav", "bell.wav", 0, (media / "bell.wav").stat().st_size)
    silent, talking = str(media / "silent.mp4"), str(media / "talking.mp4")
    bell, cat = str(media / "bell.wav"), str(media / "cat.png")
    frames = [cat, str(media / "dog.jpg"), cat]
    return {
        "picture": Medium("image", cat),
        "turned": Medium("image", str(media / "dog.jpg")),
        "small": Medium("image", cat, {"max_pixels": 28 * 28 * 2, "min_pixels": 28 * 28}),
        "fixed": Medium("image", cat, {"resized_height": 112, "resized_width": 56}),
        "pillow": Medium("image", Image.open(media / "dog.jpg")),
        "array": Medium("image", samples.picture(84, 112)),
        "bytes": Medium("image", (media / "cat.png").read_bytes()),
        "wav": Medium("audio", bell),
        "part": Medium("audio", bell, {"start": 0.25, "end": 0.75}),
        "member": Medium("audio", member),
        "flac": Medium("audio", str(media / "rain.flac")),
        "samples": Medium("audio", (samples.wave("speech"), 8000)),
        "silent film": Medium("video", silent),
        "talking film": Medium("video", talking, {"audio_in_video": True}),
        "deaf": Medium("video", talking, {"audio_in_video": False}),
        "film with sound": Medium("video", silent, {"sound": bell}),
        "fast": Medium("video", silent, {"fps": 4, "start": 0.5, "end": 1.5}),
        "counted": Medium("video", silent, {"num_frames": 2}),
        "frames": Medium("video", frames, {"fps": 1.0}),
        "frame arrays": Medium("video", samples.frames(5, 56, 84)),
    }


def assert_same(ours: Prompt, theirs: Prompt) -> None:
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    assert ours.video_has_audio == theirs.video_has_audio
    assert [grid for _, grid in ours.images] == [grid for _, grid in theirs.images]
    assert [rest for _, *rest in ours.videos] == [rest for _, *rest in theirs.videos]
    arrays = [
        [*p.mels, *(patches for patches, _ in p.images), *(patches for patches, *_ in p.videos)]
        for p in (ours, theirs)
    ]
    for first, second in zip(*arrays, strict=True):
        assert first.dtype == second.dtype == np.float32
        np.testing.assert_array_equal(first, second)


def test_features_come_back_bit_for_bit_and_are_made_once(
    media: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    fresh, cached = reader(tokenizer), reader(tokenizer, cache)
    made = {name: fresh.part(medium) for name, medium in all_media(media).items()}
    for name, medium in all_media(media).items():
        assert_same(cached.part(medium), made[name])

    def refuse(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(MediaReader, "_decoded", refuse)
    again = reader(tokenizer, FeatureCache(tmp_path / "cache"))
    for name, medium in all_media(media).items():
        assert_same(again.part(medium), made[name])
    with pytest.raises(AssertionError, match="decoded again"):
        reader(tokenizer, cache, video_fps=1.0).part(Medium("image", str(media / "cat.png")))


def test_keys_follow_contents_and_settings(
    media: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cache = FeatureCache(tmp_path / "cache")
    bell = str(media / "bell.wav")
    (tmp_path / "copy.wav").write_bytes((media / "bell.wav").read_bytes())
    keys = {
        cache.digest("s", bell),
        cache.digest("s", str(tmp_path / "copy.wav")),
        cache.digest("s", (media / "bell.wav").read_bytes()),
        cache.digest("s", Path(bell)),
    }
    assert len(keys) == 1
    (tmp_path / "copy.wav").write_bytes((media / "bell.wav").read_bytes()[:-2])
    others = [
        cache.digest("s", str(tmp_path / "copy.wav")),
        cache.digest("t", bell),
        cache.digest("s", bell, bell),
        cache.digest("s", [bell]),
        cache.digest("s", "https://a.b/c.wav"),
        cache.digest("s", np.zeros(3)),
        cache.digest("s", np.zeros(3, np.float32)),
        cache.digest("s", Image.new("RGB", (2, 3))),
        cache.digest("s", Image.new("RGB", (3, 2))),
    ]
    assert len(keys.union(others)) == 1 + len(others)
    heard, replaced = all_media(media)["silent film"], all_media(media)["film with sound"]
    read = reader(tokenizer, cache)
    assert read.part(heard).mels == [] and len(read.part(replaced).mels) == 1


def test_large_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "LARGE_BYTES", 10)
    path = tmp_path / "film.mp4"
    path.write_bytes(b"long enough")
    os.utime(path, ns=(1, 1))
    first = FeatureCache(tmp_path / "cache").digest(str(path))
    path.write_bytes(b"other bytes")  # as long, and as old: nobody would notice
    os.utime(path, ns=(1, 1))
    assert FeatureCache(tmp_path / "cache").digest(str(path)) == first
    os.utime(path, ns=(2, 2))
    assert FeatureCache(tmp_path / "cache").digest(str(path)) != first


def array(number: int, size: int = 1000) -> features.Arrays:
    return {"a": np.full(size, number, np.int32), "b": np.array([[0.5]])}


def test_entries_are_whole_and_of_every_kind(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path)
    key = cache.digest("one")
    first = cache.get(key, lambda: array(1))
    again = cache.get(key, lambda: array(2))
    assert again["a"].dtype == np.int32 and (again["a"] == 1).all() and again["b"].shape == (1, 1)
    assert first.keys() == again.keys()
    (entry,) = tmp_path.glob("??/*")
    entry.write_bytes(entry.read_bytes()[:-7])  # somebody's disk
    assert (cache.get(key, lambda: array(3))["a"] == 3).all()
    assert (cache.get(key, lambda: array(4))["a"] == 3).all()


def test_the_cache_is_bounded_and_keeps_what_is_used(tmp_path: Path) -> None:
    size = 4200  # bytes of an entry, about
    cache = FeatureCache(tmp_path, max_bytes=20 * size)
    keys = [cache.digest(str(n)) for n in range(60)]
    for n, key in enumerate(keys):
        cache.get(key, lambda n=n: array(n))
        cache.get(keys[0], lambda: array(-1))  # used all the time
        for path in tmp_path.glob("??/*"):  # time passes, whatever the clock's resolution
            moment = path.stat().st_mtime_ns - 10**9
            os.utime(path, ns=(moment, moment))
        total = sum(path.stat().st_size for path in tmp_path.glob("??/*"))
        assert total <= (20 + 20 / 64 + 1) * size
    assert (cache.get(keys[0], lambda: array(-2))["a"] == 0).all()
    assert (cache.get(keys[59], lambda: array(-2))["a"] == 59).all()
    assert (cache.get(keys[1], lambda: array(-2))["a"] == -2).all()
    with pytest.raises(ValueError, match="max_bytes is 0"):
        FeatureCache(tmp_path, max_bytes=0)


def test_a_full_disk_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FeatureCache(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_file", full)
        assert (cache.get(cache.digest("x"), lambda: array(5))["a"] == 5).all()
    assert not list(tmp_path.glob("??/*"))
    assert (cache.get(cache.digest("x"), lambda: array(6))["a"] == 6).all()


def use_cache(folder: Path, number: int) -> None:
    cache = FeatureCache(folder, max_bytes=40 * 4200)
    rng = np.random.default_rng(number)
    for key in rng.integers(60, size=300).tolist():
        found = cache.get(cache.digest(str(key)), lambda key=key: array(key))
        assert (found["a"] == key).all() and len(found["a"]) == 1000


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    users = [context.Process(target=use_cache, args=(tmp_path, number)) for number in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert not list(tmp_path.glob("??/*.part"))
    total = sum(path.stat().st_size for path in tmp_path.glob("??/*"))
    assert 0 < total <= 45 * 4200


def test_headers_tell_the_number_of_tokens(media: Path, tokenizer: Tokenizer) -> None:
    read = reader(tokenizer)
    for name, medium in all_media(media).items():
        off = read.count(medium) - len(read.part(medium).ids)
        assert abs(off) <= (1 if name == "talking film" else 0), (name, off)  # compressed sound
    deaf = reader(tokenizer, hear=False)
    film = Medium("video", str(media / "talking.mp4"))
    assert deaf.count(film) == len(deaf.part(film).ids) < read.count(film)
    long_picture = Medium("image", samples.picture(17, 900))
    assert read.count(long_picture) == len(read.part(long_picture).ids)


def test_compressed_sound_is_as_long_as_its_header_says(media: Path, tokenizer: Tokenizer) -> None:
    read = reader(tokenizer)
    spoken = Medium("audio", str(media / "spoken.mp3"))
    assert abs(read.count(spoken) - len(read.part(spoken).ids)) <= 2


def test_wav_files_of_every_kind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Also those that wave cannot read, and streamed ones, whose header knows no length."""
    read, tone = reader(tokenizer), samples.tone(1.3, 16000)
    streamed = encode.SoundEncoder("wav", sample_rate=16000)
    (tmp_path / "streamed.wav").write_bytes(streamed.push(tone) + streamed.finish())
    floats = samples.film("wav", video=None, audio="pcm_f32le", seconds=1.3, rate=44100)
    (tmp_path / "floats.wav").write_bytes(floats)
    wide = samples.film("wav", video=None, audio="pcm_s24le", seconds=1.3, rate=48000)
    (tmp_path / "wide.wav").write_bytes(wide)
    for path in sorted(tmp_path.iterdir()):
        medium = Medium("audio", str(path))
        assert read.count(medium) == len(read.part(medium).ids) == 32, path


def test_what_has_no_header_is_decoded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pictures = [Image.fromarray(picture) for picture in samples.frames(6, 56, 84)]
    path = tmp_path / "moving.gif"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=200)
    read = reader(tokenizer)
    assert read.count(Medium("video", str(path))) == len(read.part(Medium("video", str(path))).ids)


def test_headers_tell_what_is_wrong(media: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    read = reader(tokenizer)
    short = np.zeros(300, np.float32)
    (tmp_path / "empty.png").write_bytes(b"")
    for medium, message in (
        (Medium("audio", short), "shorter than 30 ms"),
        (Medium("audio", str(media / "silent.mp4")), "has no sound"),
        (Medium("image", str(media / "bell.wav")), "is not a picture"),
        (Medium("image", str(tmp_path / "empty.png")), "is empty"),
        (Medium("video", str(media / "bell.wav")), "is not a video"),
        (Medium("image", str(tmp_path / "none.png")), "does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            read.count(medium)
