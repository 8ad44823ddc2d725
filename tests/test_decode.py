"""Every common kind of sound and picture is read, every bad one is refused in one sentence."""

import base64
import io
import struct
import threading
import wave
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import media_samples as samples
import numpy as np
import pytest
from PIL import Image

from thinktalk.media.decode import load_audio, load_image, resample
from thinktalk.media.source import medium_of, source_name

SOUNDS = [
    # container, codec, rate, layout
    ("wav", "pcm_s16le", 44100, "stereo"),
    ("wav", "pcm_u8", 8000, "mono"),
    ("wav", "pcm_s24le", 96000, "5.1"),
    ("wav", "pcm_s32le", 22050, "stereo"),
    ("wav", "pcm_f32le", 48000, "mono"),
    ("wav", "pcm_f64le", 11025, "stereo"),
    ("wav", "pcm_mulaw", 8000, "mono"),
    ("flac", "flac", 44100, "stereo"),
    ("mp3", "libmp3lame", 44100, "stereo"),
    ("ogg", "libopus", 48000, "stereo"),
    ("webm", "libopus", 48000, "mono"),
    ("mp4", "aac", 44100, "5.1"),
    ("adts", "aac", 16000, "mono"),
    ("matroska", "ac3", 48000, "5.1"),
    ("aiff", "pcm_s16be", 32000, "mono"),
    ("caf", "pcm_s16le", 44100, "mono"),
]


def sound(container: str, codec: str, rate: int, layout: str, seconds: float = 1.0) -> bytes:
    return samples.film(
        container, video=None, audio=codec, rate=rate, layout=layout, seconds=seconds
    )


@pytest.mark.parametrize(("container", "codec", "rate", "layout"), SOUNDS)
def test_sounds(container: str, codec: str, rate: int, layout: str) -> None:
    samples_16k = load_audio(sound(container, codec, rate, layout))
    assert samples_16k.dtype == np.float32 and samples_16k.ndim == 1
    assert abs(len(samples_16k) - 16000) < 1500  # some codecs add silence at the ends
    assert abs(samples.pitch(samples_16k) - 440) < 2
    assert (
        abs(np.abs(samples_16k[4000:12000]).max() - 0.3) < 0.06
    )  # the LFE channel keeps no 440 Hz


def test_lossless_sound_is_exact() -> None:
    tone = samples.tone(0.5, 16000)
    levels = np.round(tone * 32768).astype(np.int16)
    np.testing.assert_array_equal(load_audio(_wav(levels, 16000)), levels / np.float32(32768))


def test_channels_are_averaged() -> None:
    left, right = samples.tone(0.5, 16000, 300.0), samples.tone(0.5, 16000, 500.0)
    stereo = np.stack([left, right])
    np.testing.assert_allclose(load_audio(stereo), (left + right) / 2, atol=1e-7)
    np.testing.assert_allclose(load_audio(stereo.T), (left + right) / 2, atol=1e-7)


def test_arrays() -> None:
    tone = samples.tone(0.5, 16000)
    np.testing.assert_array_equal(load_audio(tone), tone)
    np.testing.assert_allclose(load_audio((tone * 32768).astype(np.int16)), tone, atol=1e-4)
    at_8k = load_audio((samples.tone(0.5, 8000), 8000))
    assert len(at_8k) == 8000 and abs(samples.pitch(at_8k) - 440) < 2


def test_other_rates_can_be_asked_for() -> None:
    at_24k = load_audio(sound("flac", "flac", 48000, "mono"), sample_rate=24000)
    assert len(at_24k) == 24000 and abs(samples.pitch(at_24k, 24000) - 440) < 2


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_resampled_length(rate: int) -> None:
    for num_samples in (1, 7, 1000, 4410):
        out = resample(np.ones(num_samples, np.float32), before=rate, after=16000)
        assert len(out) == -(-num_samples * 16000 // rate) and out.dtype == np.float32


def test_segments() -> None:
    whole = load_audio(sound("flac", "flac", 16000, "mono", 2.0))
    part = load_audio(sound("flac", "flac", 16000, "mono", 2.0), start=0.5, end=1.25)
    np.testing.assert_array_equal(part, whole[8000:20000])
    np.testing.assert_array_equal(load_audio(whole, start=1.5), whole[24000:])
    with pytest.raises(ValueError, match="no samples in this segment"):
        load_audio(sound("flac", "flac", 16000, "mono", 1.0), start=3)
    with pytest.raises(ValueError, match="end must be later"):
        load_audio(whole, start=1, end=1)
    with pytest.raises(ValueError, match="start is -1 s"):
        load_audio(whole, start=-1)


def test_sound_of_a_film() -> None:
    film = samples.film("mp4", audio="aac", seconds=1.0)
    assert abs(samples.pitch(load_audio(film)) - 440) < 2


def test_too_long_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "long.flac"
    path.write_bytes(sound("flac", "flac", 16000, "mono", 3.0))
    assert len(load_audio(path, max_seconds=3))
    assert len(load_audio(path, end=1, max_seconds=2))
    with pytest.raises(ValueError, match=r"long\.flac lasts longer than 2 s; give start and end"):
        load_audio(path, max_seconds=2)


def test_bad_arrays_are_refused() -> None:
    with pytest.raises(ValueError, match="has no samples"):
        load_audio(np.zeros(0, np.float32))
    with pytest.raises(ValueError, match="shape"):
        load_audio(np.zeros((20, 30), np.float32))
    with pytest.raises(ValueError, match="not numbers"):
        load_audio(np.array([0, np.nan], np.float32))
    with pytest.raises(ValueError, match="complex"):
        load_audio(np.zeros(10, complex))


REFUSED = [
    # name, bytes, what the sentence says
    ("empty.wav", b"", "is empty"),
    ("noise.mp3", bytes(np.random.RandomState(0).randint(0, 256, 20000, np.uint8)), "cannot be"),
    ("words.txt", b"This is no sound.\n" * 40, "has no sound"),
    ("page.html", b"<html><body>Not found</body></html>" * 9, "cannot be read"),
    ("picture.png", samples.image_bytes(Image.new("RGB", (30, 30)), "PNG"), "has no sound"),
    ("silent.mp4", samples.film("mp4", seconds=0.4), "has no sound"),
    ("list.m3u8", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "cannot be"),
]


@pytest.mark.parametrize(("name", "data", "says"), REFUSED)
def test_what_is_no_sound_is_refused(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}.* {says}.*; ") as refusal:
        load_audio(path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("container", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("aiff", "pcm_s16be"), ("matroska", "flac")],
)
def test_truncated_sound_is_refused(tmp_path: Path, container: str, codec: str) -> None:
    path = tmp_path / "cut.dat"
    data = sound(container, codec, 16000, "mono", 3.0)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"cut\.dat is (corrupt or )?truncated.*; get"):
        load_audio(path)


def test_corrupt_sound_is_refused() -> None:
    data = bytearray(sound("flac", "flac", 16000, "mono", 3.0))
    for place in range(1000, len(data), 200):
        data[place] ^= 0x55
    with pytest.raises(ValueError, match=r"is (corrupt|truncated)"):
        load_audio(bytes(data))


def test_wav_of_unknown_length_is_read() -> None:
    """Programs that write to a pipe cannot fill in the length."""
    data = bytearray(_wav(np.ones(1600, np.int16), 16000))
    data[4:8] = data[40:44] = struct.pack("<I", 0xFFFFFFFF)
    assert len(load_audio(bytes(data))) == 1600


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.wav does not exist; check the path"):
        load_audio(tmp_path / "nowhere.wav")
    with pytest.raises(ValueError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ValueError, match="given int is no medium"):
        load_image(5)  # pyright: ignore[reportArgumentType]


def test_data_uris() -> None:
    data = base64.b64encode(sound("flac", "flac", 16000, "mono")).decode()
    assert len(load_audio(f"data:audio/flac;base64,{data}")) == 16000
    assert len(load_audio(f"data:;base64,{data}")) == 16000
    with pytest.raises(ValueError, match=r"the data URI \(audio/flac\) is not valid base64"):
        load_audio("data:audio/flac;base64,%%%")
    with pytest.raises(ValueError, match="has no comma"):
        load_audio("data:audio/flac;base64")


def test_file_urls(tmp_path: Path) -> None:
    path = tmp_path / "a b.flac"
    path.write_bytes(sound("flac", "flac", 16000, "mono"))
    assert len(load_audio(path.as_uri())) == 16000


@pytest.fixture
def server() -> Iterator[str]:
    """Serves a sound under /a.flac, and nothing else."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path.startswith("/a.flac")
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(sound("flac", "flac", 16000, "mono") if found else b"no")

        def log_message(self, *_: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_urls(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    assert len(load_audio(f"{server}/a.flac?token=secret")) == 16000
    with pytest.raises(
        ValueError, match=r"/b\.flac could not be downloaded \(Not Found\)"
    ) as error:
        load_audio(f"{server}/b.flac?token=secret")
    assert "secret" not in str(error.value)


def test_names_of_sources_hide_contents() -> None:
    assert source_name(b"abc") == "the given data"
    assert source_name("https://user:word@example.org/a.png?key=1") == "https://example.org/a.png"
    assert len(source_name("data:image/png;base64," + "A" * 999)) < 60


def test_medium_of(tmp_path: Path) -> None:
    assert medium_of("a/b.WAV") == "audio"
    assert medium_of("https://example.org/c.jpg?size=3") == "image"
    assert medium_of("data:video/mp4;base64,AAAA") == "video"
    assert medium_of("What is in picture.png") is None
    assert medium_of("Hello.") is None
    path = tmp_path / "with space.png"
    assert medium_of(str(path)) is None
    path.write_bytes(b"x")
    assert medium_of(str(path)) == "image"


# ---- pictures


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000"])
def test_pictures(kind: str) -> None:
    flat = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    out = load_image(samples.image_bytes(Image.fromarray(flat), kind))
    assert out.shape == (40, 60, 3) and out.dtype == np.uint8
    assert np.abs(out.astype(int) - flat).max() <= 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_modes(mode: str) -> None:
    grey = np.full((20, 30), 128, np.uint8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(grey.astype(np.float32) / 255)
    else:
        image = Image.fromarray(grey).convert("RGB").convert(mode)
    kind = {"CMYK": "JPEG", "YCbCr": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    out = load_image(samples.image_bytes(image, kind)).astype(int)
    assert out.shape == (20, 30, 3)
    assert abs(out.mean() - 128) < 4


def test_transparent_parts_become_white() -> None:
    pixels = np.zeros((10, 20, 4), np.uint8)
    pixels[:, :10] = (255, 0, 0, 255)
    pixels[:, 10:, 3] = 51  # black, one fifth opaque
    for source in (samples.image_bytes(Image.fromarray(pixels), "PNG"), pixels):
        out = load_image(source)
        assert (out[:, :10] == (255, 0, 0)).all() and (out[:, 10:] == 204).all()
    palette = Image.fromarray(pixels).convert("P")
    out = load_image(samples.image_bytes(palette, "GIF", transparency=palette.getpixel((15, 5))))
    assert (out[:, 10:] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation: int) -> None:
    """Whatever way the camera was held, the red corner is at the top left."""
    upright = Image.fromarray(samples.level_frame(20, (32, 48)))
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for method in undo.get(orientation, []):
        stored = stored.transpose(method)
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = load_image(samples.image_bytes(stored, "PNG", exif=exif))
    np.testing.assert_array_equal(out, np.asarray(upright))


def test_first_frame_of_an_animation() -> None:
    images = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = samples.image_bytes(images[0], kind, save_all=True, append_images=images[1:])
        assert (np.abs(load_image(data).astype(int) - (255, 0, 0)) <= 5).all()


def test_picture_arrays() -> None:
    image = samples.picture(20, 30)
    for same in (image, image.transpose(2, 0, 1), Image.fromarray(image), image / 255):
        np.testing.assert_array_equal(load_image(same), image)
    assert load_image(image[:, :, 0]).shape == (20, 30, 3)
    with pytest.raises(ValueError, match=r"shape \(4,\)"):
        load_image(np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match=r"int64 values from -3 to 999"):
        load_image(np.array([[-3, 999]]))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_pictures_are_refused(tmp_path: Path, kind: str) -> None:
    data = samples.image_bytes(Image.fromarray(samples.picture(60, 60)), kind)
    path = tmp_path / "cut.img"
    for share in (0.02, 0.5):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(ValueError, match=r"cut\.img is .*; ") as refusal:
            load_image(path)
        assert type(refusal.value) is ValueError


@pytest.mark.parametrize("name", ["words.txt", "page.html", "noise.mp3", "silent.mp4", "empty.wav"])
def test_what_is_no_picture_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(next(data for other, data, _ in REFUSED if other == name))
    with pytest.raises(ValueError, match=f"{name} is (empty|not a picture).*; "):
        load_image(path)


def test_enormous_pictures_are_refused() -> None:
    head = io.BytesIO()
    Image.new("1", (1, 1)).save(head, "PNG")
    data = bytearray(head.getvalue())
    data[16:24] = struct.pack(">II", 60000, 60000)
    with pytest.raises(ValueError, match="the given data "):
        load_image(bytes(data))


def _wav(levels: np.ndarray, rate: int) -> bytes:
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(levels.astype("<i2").tobytes())
    return held.getvalue()
