"""Films: containers, sampling, rotation, variable rate, sound, segments, damage; and patches."""

import hashlib
import io
from fractions import Fraction
from pathlib import Path

import av
import media_samples as samples
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from thinktalk.media.film import Sampling, choose_frames
from thinktalk.media.image import Processor
from thinktalk.media.video import load_video, video_patches, video_size

GOLDEN = load_file(Path(__file__).parent / "golden" / "media.safetensors")
PROCESSOR = Processor()
FILMS = [
    # container, video codec, audio codec, rate
    ("mp4", "libx264", "aac", 44100),
    ("mov", "libx264", "pcm_s16le", 44100),
    ("matroska", "libx264", "aac", 44100),
    ("webm", "libvpx", "libopus", 48000),
    ("webm", "libvpx-vp9", "libopus", 48000),
    ("avi", "mpeg4", "libmp3lame", 44100),
    ("mpegts", "libx264", "aac", 44100),
    ("mpeg", "mpeg2video", "mp2", 44100),
    ("flv", "flv", "libmp3lame", 44100),
    ("h264", "libx264", None, 0),
]


@pytest.mark.parametrize(("number", "height", "width"), samples.FILMS)
def test_patches_equal_reference(number: int, height: int, width: int) -> None:
    out, grid = video_patches(samples.frames(number, height, width), processor=PROCESSOR)
    key = f"video.{number}x{height}x{width}"
    assert grid == tuple(GOLDEN[f"{key}.grid"].tolist())
    np.testing.assert_array_equal(out[len(out) // 2], GOLDEN[f"{key}.row"])
    assert hashlib.sha256(out.tobytes()).digest() == GOLDEN[f"{key}.sha256"].tobytes()


def test_frame_pairs_are_independent() -> None:
    film = samples.frames(4, 56, 84)
    whole, _ = video_patches(film, processor=PROCESSOR)
    pairs = [video_patches(film[i : i + 2], processor=PROCESSOR)[0] for i in (0, 2)]
    np.testing.assert_array_equal(whole, np.concatenate(pairs))


@pytest.mark.parametrize(("container", "video", "audio", "rate"), FILMS)
def test_containers(container: str, video: str, audio: str | None, rate: int) -> None:
    film = load_video(samples.film(container, video=video, audio=audio, rate=rate))
    assert film.frames.shape == (4, 48, 64, 3) and film.frames.dtype == np.uint8
    levels = [samples.level_of(frame) for frame in film.frames]
    np.testing.assert_allclose(levels, [0, 16, 33, 49], atol=2)  # linspace(0, 49, 4)
    assert (film.fps, film.requested_fps) == (2.0, 2.0)
    if audio is None:
        assert film.sound is None
    else:
        assert film.sound is not None and abs(len(film.sound) - 32000) < 1500
        assert abs(samples.pitch(film.sound) - 440) < 2


def test_sound_is_only_read_when_asked_for() -> None:
    data = samples.film("mp4", audio="aac")
    assert load_video(data).sound is not None
    assert load_video(data, sound=False).sound is None


@pytest.mark.parametrize(
    ("num_source", "fps", "options", "expected"),
    [
        (250, 25, {}, 20),  # 10 s at 2 fps
        (265, 25, {}, 20),  # 21.2: floored to even
        (25, 25, {}, 4),  # at least 4
        (3, 25, {}, 2),  # no more than there are, even
        (2, 25, {}, 2),
        (1, 25, {}, 1),
        (25000, 25, {}, 768),  # at most 768
        (250, 25, {"fps": 1.0}, 10),
        (250, 25, {"fps": 100.0}, 250),
        (250, 25, {"num_frames": 7}, 8),
        (250, 25, {"max_frames": 6}, 6),
        (250, 25, {"min_frames": 33}, 34),
    ],
)
def test_official_number_of_frames(
    num_source: int, fps: int, options: dict[str, float], expected: int
) -> None:
    times = [Fraction(i, fps) for i in range(num_source)]
    chosen, _ = choose_frames(
        times,
        seconds=Fraction(num_source, fps),
        rate=Fraction(fps),
        sampling=Sampling(**options),  # pyright: ignore[reportArgumentType]
    )
    spread = np.round(np.linspace(0, num_source - 1, expected)).astype(int)
    assert chosen == spread.tolist()


def test_rate_is_the_true_one_where_a_limit_changed_it() -> None:
    short = load_video(samples.film("mp4", seconds=0.8))  # 4 frames in 0.8 s, not 2
    assert short.requested_fps == 2.0 and short.fps == pytest.approx(5.0)
    assert short.seconds_per_pair(exact=True) == 1.0  # as the reference says
    assert short.seconds_per_pair(exact=False) == pytest.approx(0.4, abs=1 / 128)
    assert short.seconds_per_pair(exact=False) * 64 % 1 == 0
    plain = load_video(samples.film("mp4", seconds=2.6), fps=5)
    assert plain.seconds_per_pair(exact=False) == 0.4


def test_variable_rate() -> None:
    """25 frames in the first second, then one that stays for 3 s: time decides, not number."""
    stamps = [40 * i for i in range(25)] + [3960]
    film = load_video(samples.film("matroska", stamps=stamps))
    levels = [samples.level_of(frame) for frame in film.frames]
    assert len(levels) == 8
    np.testing.assert_allclose(levels, [6, 18, 24, 24, 24, 24, 24, 24], atol=2)


@pytest.mark.parametrize(
    ("matrix", "corner"),
    [
        ((1, 0, 0, 1), (0, 0)),
        ((0, 1, -1, 0), (0, -1)),  # a quarter clockwise: the phone was upright
        ((-1, 0, 0, -1), (-1, -1)),
        ((0, -1, 1, 0), (-1, 0)),
        ((-1, 0, 0, 1), (0, -1)),  # mirrored
        ((0, 1, 1, 0), (0, 0)),  # transposed
    ],
)
def test_display_matrix(matrix: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    data = samples.turned(samples.film("mp4", seconds=0.4), matrix)
    frame = load_video(data).frames[0]
    assert frame.shape == ((48, 64, 3) if matrix[0] else (64, 48, 3))
    for y in (0, -1):
        for x in (0, -1):
            red = frame[8 if y == 0 else -8, 8 if x == 0 else -8, 0] > 128
            assert red == ((y, x) == corner)


def test_segments() -> None:
    data = samples.film("mp4", audio="aac", seconds=4.0)
    film = load_video(data, start=1.0, end=3.0)
    levels = [samples.level_of(frame) for frame in film.frames]
    np.testing.assert_allclose(levels, [25, 42, 58, 75], atol=2)  # linspace(25, 75, 4)
    assert film.sound is not None and len(film.sound) == 32000
    with pytest.raises(ValueError, match=r"holds no frame.*; it has 100 frames in 4\.00 s"):
        load_video(data, start=5.0)


def test_late_sound_is_aligned() -> None:
    """Sound that starts a second into the film stays there."""
    held = io.BytesIO()
    data = io.BytesIO(samples.film("matroska", audio="pcm_s16le", rate=16000))
    with av.open(data, "r") as source, av.open(held, "w", format="matroska") as target:
        streams = {s: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if not packet.size:  # the end of a stream
                continue
            if packet.stream.type == "audio":
                packet.dts = packet.pts = (packet.pts or 0) + 1000  # milliseconds
            packet.stream = streams[packet.stream]
            target.mux(packet)
    film = load_video(held.getvalue())
    assert film.sound is not None and abs(len(film.sound) - 48000) < 100
    assert np.abs(film.sound[:15900]).max() == 0
    assert np.abs(film.sound[16100:]).max() > 0.29


def test_frames_can_be_sized_while_decoding() -> None:
    data = samples.film("mp4", size=(96, 128))
    film = load_video(data, size=lambda number, height, width: (28 * number, width))
    assert film.frames.shape == (4, 112, 128, 3)


def test_frame_lists(tmp_path: Path) -> None:
    film = samples.frames(3, 30, 40)
    Image.fromarray(film[0]).save(tmp_path / "0.png")
    mixed = load_video([tmp_path / "0.png", film[1], Image.fromarray(film[2])], fps=1.0)
    np.testing.assert_array_equal(mixed.frames, film)
    assert (mixed.fps, mixed.requested_fps, mixed.sound) == (1.0, 1.0, None)
    np.testing.assert_array_equal(load_video(film).frames, film)
    np.testing.assert_array_equal(load_video(film.transpose(0, 3, 1, 2)).frames, film)
    assert load_video([film[0], samples.picture(60, 80)]).frames.shape == (2, 30, 40, 3)
    with pytest.raises(ValueError, match="list of frames is empty"):
        load_video([])
    with pytest.raises(ValueError, match="start, end and nframes cut files"):
        load_video(film, start=1.0)
    with pytest.raises(ValueError, match="float64"):
        load_video(film / 255)
    with pytest.raises(ValueError, match="shape"):
        load_video(film[0])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animated_pictures(kind: str) -> None:
    images = [Image.new("RGB", (20, 10), (25 * i, 0, 0)) for i in range(10)]
    data = samples.image_bytes(
        images[0], kind, save_all=True, append_images=images[1:], duration=300
    )
    film = load_video(data)  # 3 s: the frames on the screen at 0.25, 0.75, 1.25, ... s
    reds = film.frames[:, 5, 10, 0] / 25
    np.testing.assert_allclose(reds, [0, 2, 4, 5, 7, 9], atol=0.4)
    assert film.sound is None


def test_changing_size_on_the_way() -> None:
    """Browsers record several sizes into one file; MPEG-2 parts can simply be joined."""
    parts = [
        samples.film("mpeg2video", video="mpeg2video", size=size, seconds=0.4)
        for size in ((48, 64), (96, 128))
    ]
    assert load_video(b"".join(parts)).frames.shape == (4, 48, 64, 3)


def _cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


REFUSED = [
    ("empty.mp4", b"", "is empty"),
    ("words.txt", b"These are only words.\n" * 40, "is not a video"),
    ("sound.mp4", samples.film("mp4", video=None, audio="aac"), "has sound but no pictures"),
    ("still.png", samples.image_bytes(Image.new("RGB", (9, 9)), "PNG"), "is a still picture"),
    ("cut.mp4", _cut(samples.film("mp4")), "cannot be read as video"),
    ("cut.mkv", _cut(samples.film("matroska")), "is truncated"),
    ("cut.avi", _cut(samples.film("avi", video="mpeg4"), 0.8), "is truncated"),
]


@pytest.mark.parametrize(("name", "data", "says"), REFUSED)
def test_what_is_no_film_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name} {says}.*; ") as refusal:
        load_video(path)
    assert type(refusal.value) is ValueError and "\n" not in str(refusal.value)


def test_corrupt_film_is_refused() -> None:
    data = bytearray(samples.film("mp4", video="libvpx-vp9", seconds=0.8))
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start : start + size] = bytes(size)
    with pytest.raises(ValueError, match="the given data is corrupt"):
        load_video(bytes(data))


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": -1}, {"num_frames": 0}, {"min_frames": 0}])
def test_bad_sampling(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"(fps|nframes|min_frames) is -?\d"):
        load_video(samples.film("mp4", seconds=0.4), **options)  # pyright: ignore


def test_more_frames_than_there_are() -> None:
    with pytest.raises(ValueError, match="only 10 frames"):
        load_video(samples.film("mp4", seconds=0.4), num_frames=12)


@pytest.mark.parametrize(
    ("num_frames", "size", "expected"),
    [
        (20, (720, 1280), (560, 1008)),  # 602,112 pixels a frame
        (20, (120, 90), (392, 280)),  # at least 100,352
        (768, (720, 1280), (336, 644)),  # 90,316,800 pixels altogether
        (20, (476, 644), (476, 644)),
    ],
)
def test_official_sizes(num_frames: int, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert video_size(num_frames, *size, processor=PROCESSOR) == expected


def test_own_pixel_limits() -> None:
    assert video_size(4, 720, 1280, processor=PROCESSOR, max_pixels=50_000) == (140, 280)
    assert video_size(4, 720, 1280, processor=PROCESSOR, total_pixels=400_000) == (308, 588)
    small = Processor(video_min_pixels=56 * 56, video_max_pixels=112 * 112)
    assert video_size(4, 720, 1280, processor=small) == (84, 140)
    with pytest.raises(ValueError, match="too narrow"):
        video_size(4, 10, 2001, processor=PROCESSOR)
