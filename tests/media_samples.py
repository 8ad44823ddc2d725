"""Sounds, pictures, films and a small tokenizer for the tests of media/, all made from formulas."""

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SPECIAL_TOKENS = (
    "<|endoftext|> <|im_start|> <|im_end|> <|AUDIO|> <|audio_bos|> <|audio_eos|> <|vision_bos|>"
    " <|vision_eos|> <|vision_pad|> <|IMAGE|> <|VIDEO|>"
).split()
ORDINARY_ADDED_TOKENS = ["<tool_call>", "</tool_call>"]
MERGED_WORDS = (
    "system user assistant You are helpful What do you see and hear colour is the".split()
)
TEXTS = (
    "What do you see and hear?",
    "you're HELPFUL, 12345 times...\n\n  the   end \r\n",
    "ÄÖ é é 你好，世界 👩‍👩‍👧 नमस्ते \t tab",
    "def f(x):\n    return x**2  # the square",
    "",
)

# clips whose mels are recorded: name -> seconds
WAVES = {"short": 0.013, "chirp": 0.4, "speech": 2.13, "silence": 0.25, "late": 4.5}
PICTURES = ((84, 112), (100, 60), (270, 480), (4, 5), (333, 77), (17, 900), (476, 644), (480, 640))
FILMS = ((5, 56, 84), (4, 120, 90), (2, 270, 480))
VIDEO_PIXELS = 56 * 84  # of every frame in the prompts
# prompts whose expanded ids are recorded: name -> (parts, frames per second)
PROMPTS = {
    "text": ([("text", "What do you see and hear?")], 2.0),
    "image": ([("image", 84, 112), ("text", "What colour is the circle?")], 2.0),
    "audio": ([("audio", "speech"), ("text", "\n\nWhat?")], 2.0),
    "video": ([("video", (10, 56, 84), None), ("text", "you see")], 2.0),
    "sounding": ([("video", (10, 56, 84), "late"), ("text", "you see and hear")], 2.0),
    "fast": ([("video", (11, 56, 84), "late"), ("text", "")], 5.0),
    "slow": ([("video", (8, 56, 84), "late"), ("text", "you")], 0.4),  # chunk borders lag
    "long sound": ([("video", (2, 56, 84), "late"), ("text", "you")], 2.0),
    "all": (
        [
            ("image", 84, 112),
            ("text", "and"),
            ("audio", "chirp"),
            ("video", (6, 56, 84), "speech"),
            ("text", " you"),
            ("image", 100, 60),
        ],
        2.0,
    ),
}


def wave(name: str) -> NDArray[np.float32]:
    """16 kHz mono; "late" has its loudest part at the end, so that its running maximum rises."""
    seconds = WAVES[name]
    t = np.arange(round(16000 * seconds)) / 16000
    rng = np.random.RandomState(len(name))
    chirp = 0.3 * np.sin(2 * np.pi * (200 * t + 900 * t**2 / seconds))
    if name == "silence":
        return np.zeros(len(t), np.float32)
    if name == "speech":
        chirp *= np.clip(np.sin(2 * np.pi * 3 * t), 0, 1)
    if name == "late":
        chirp *= np.where(t < 2.5, 1e-4, 1.0)
    return (chirp + 1e-3 * rng.randn(len(t))).astype(np.float32)


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth colours with noise on them, so that resizing rounds up, down and beyond the range."""
    rng = np.random.RandomState(seed + height * 1000 + width)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / 9 + c) * np.cos(x / 7 - c) * 120 + 128 for c in range(3)]
    noisy = np.stack(waves, -1) + rng.randint(-60, 61, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def frames(number: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.stack([picture(height, width, seed) for seed in range(number)])


def tone(seconds: float, rate: int, hz: float = 440.0) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * hz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def pitch(samples: NDArray[np.float32], rate: int = 16000) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(spectrum.argmax() * rate / (1 << 18))


def film(
    container: str,
    *,
    video: str | None = "libx264",
    audio: str | None = None,
    seconds: float = 2.0,
    fps: int = 25,
    size: tuple[int, int] = (48, 64),
    stamps: list[int] | None = None,
    rate: int = 44100,
    layout: str = "stereo",
    hz: float = 440.0,
    sound_seconds: float | None = None,
) -> bytes:
    """A film whose k-th frame is grey level 2 k with a red square at the top left, and a tone.

    stamps are the frames' times in milliseconds, for a variable rate.
    """
    held = io.BytesIO()
    with av.open(held, "w", format=container) as media:
        pictures: Any = media.add_stream(video, rate=fps) if video else None
        sound = media.add_stream(audio, rate=rate, layout=layout) if audio else None
        if pictures is not None:
            pictures.height, pictures.width = size
            pictures.pix_fmt = "yuv420p"
            pictures.codec_context.time_base = Fraction(1, 1000) if stamps else Fraction(1, fps)
            for number in range(len(stamps) if stamps else round(seconds * fps)):
                frame = av.VideoFrame.from_ndarray(level_frame(number, size), format="rgb24")
                frame.pts = stamps[number] if stamps else number
                frame.time_base = pictures.codec_context.time_base
                media.mux(pictures.encode(frame))
            media.mux(pictures.encode(None))
        if sound is not None:
            _mux_tone(media, sound, sound_seconds or seconds, rate, layout, hz)
    return held.getvalue()


def level_frame(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    pixels = np.full((*size, 3), number * 2 % 256, np.uint8)
    pixels[: size[0] // 2, : size[1] // 2] = (255, 0, 0)
    return pixels


def level_of(frame: NDArray[np.uint8]) -> int:
    """Which frame of a film() this is, from the grey of its bottom right corner."""
    return round(float(frame[-8:, -8:].mean()) / 2)


def _mux_tone(media, sound, seconds: float, rate: int, layout: str, hz: float) -> None:
    context = sound.codec_context
    samples = np.repeat(tone(seconds, rate, hz)[None], context.layout.nb_channels, axis=0)
    frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout=layout)
    frame.sample_rate, frame.pts = rate, 0
    convert = av.AudioResampler(
        format=context.format, layout=layout, rate=rate, frame_size=context.frame_size or 1024
    )
    for piece in [*convert.resample(frame), *convert.resample(None)]:
        media.mux(sound.encode(piece))
    media.mux(sound.encode(None))


def turned(mp4: bytes, matrix: tuple[int, int, int, int]) -> bytes:
    """Put a display matrix (a, b, c, d) into the first track of an mp4 file."""
    data = bytearray(mp4)
    box = data.index(b"tkhd")
    place = box + 4 + 4 + 20 + 8 + 8  # type, version and flags, times and id, reserved, layer...
    one = 1 << 16
    a, b, c, d = (value * one for value in matrix)
    numbers = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    data[place : place + 36] = b"".join(n.to_bytes(4, "big", signed=True) for n in numbers)
    return bytes(data)


def image_bytes(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def write_tokenizer(folder: Path) -> None:
    """The official file layout: vocab.json, merges.txt, tokenizer_config.json; some merges."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    vocab = {letter: i for i, letter in enumerate(alphabet)}
    merges = []
    for word in [word for plain in MERGED_WORDS for word in (plain, "Ġ" + plain)] + ["ĊĊ", "ĠĠ"]:
        for end in range(1, len(word)):
            left, right = word[:end], word[end]
            if left + right not in vocab:
                merges.append(f"{left} {right}")
                vocab[left + right] = len(vocab)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    lines = "#version: 0.2\n" + "\n".join(merges) + "\n"
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    names = SPECIAL_TOKENS + ORDINARY_ADDED_TOKENS
    added = {
        str(len(vocab) + i): {"content": name, "special": name in SPECIAL_TOKENS}
        | dict.fromkeys(("lstrip", "rstrip", "normalized", "single_word"), False)
        for i, name in enumerate(names)
    }
    named = {
        f"{name}_token": token
        for name, token in (
            ("image", "<|IMAGE|>"),
            ("audio", "<|AUDIO|>"),
            ("video", "<|VIDEO|>"),
            ("vision_bos", "<|vision_bos|>"),
            ("vision_eos", "<|vision_eos|>"),
            ("audio_bos", "<|audio_bos|>"),
            ("audio_eos", "<|audio_eos|>"),
        )
    }
    config = {
        "added_tokens_decoder": added,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "Qwen2Tokenizer",
        "extra_special_tokens": named,
        **named,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
