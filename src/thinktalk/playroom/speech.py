"""Spoken words for the playroom: text in, samples out, by flite and espeak-ng.

Two *reply* voices (24 kHz): Chelsie is flite's slt, Ethan is flite's rms with pitch and formants
raised by ETHAN_RAISE. rms alone has a mean pitch of 104 Hz, and vocoders lock on to the mel rate of
100 frames/s; flite ignores its pitch settings for this kind of voice, so rms is synthesised slower
by the factor and played faster by the same factor, which leaves the durations as they were.

Many *input* voices (16 kHz), each said with a random speed and pitch and then put into a random
room: level, noise, light reverberation. The voices of UNSEEN_VOICES are for tests only.
"""

import shutil
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from thinktalk.playroom.words import to_ascii

REPLY_HZ = 24_000
INPUT_HZ = 16_000
FLITE_HZ = 16_000
ESPEAK_HZ = 22_050

REPLY_VOICES = {"Chelsie": "slt", "Ethan": "rms"}
ETHAN_RAISE = 1.2  # 104.6 Hz -> 125 Hz mean pitch
LEAD_S = 0.06  # silence kept before the first and after the last phone
TAIL_S = 0.14
CODEC_ID_SAMPLES = 480  # a reply is padded to whole codec ids: 20 ms at 24 kHz

# Input voices: gender by name. espeak-ng names are accent+variant.
FLITE_INPUTS = {"slt": "woman", "rms": "man", "awb": "man", "kal16": "man"}
ESPEAK_ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp")
ESPEAK_WOMEN = ("f1", "f2", "f3", "f4", "Annie", "Alicia", "Andrea", "linda", "steph", "aunty")
ESPEAK_MEN = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "Andy", "Lee", "Mike", "john", "max")
ESPEAK_INPUTS = {v: "woman" for v in ESPEAK_WOMEN} | {v: "man" for v in ESPEAK_MEN}
UNSEEN_VOICES = {"f5": "woman", "m8": "man"}
FLITE_SHARE = 0.5  # of the input utterances


@dataclass(frozen=True)
class Utterance:
    """samples: float32 at 24 kHz, a multiple of 480. words: (word index, start s, end s), a word
    being what stands between spaces."""

    samples: np.ndarray
    words: list[tuple[int, float, float]]


def speak(text: str, *, voice: str, stretch: float = 1.0) -> np.ndarray:
    """The reply `text` in a reply voice: float32 at 24 kHz, a multiple of 480; deterministic.

    stretch: 1.4 is slow, 0.8 is quick. Raises ValueError for an unknown voice or an empty text.
    """
    return _reply(text, voice=voice, stretch=stretch)[0]


def phones(text: str, *, voice: str, stretch: float = 1.0) -> list[tuple[int, float, float]]:
    """(word index, start s, end s) of every word in what `speak` returns."""
    return utter(text, voice=voice, stretch=stretch).words


def utter(text: str, *, voice: str, stretch: float = 1.0) -> Utterance:
    """`speak` and `phones` from one synthesis."""
    samples, spoken = _reply(text, voice=voice, stretch=stretch)
    return Utterance(samples, align_words(to_ascii(text), spoken))


def _reply(text: str, *, voice: str, stretch: float) -> tuple[np.ndarray, list["Segment"]]:
    """The samples of a reply, and its phones without pauses, timed in them."""
    if voice not in REPLY_VOICES:
        raise ValueError(f"unknown reply voice {voice!r}: choose {' or '.join(REPLY_VOICES)}")
    if not any(letter.isalnum() for letter in text):
        raise ValueError(f"there is no word to say in {text!r}")
    raised = ETHAN_RAISE if voice == "Ethan" else 1.0
    samples, segments = flite(text, voice=REPLY_VOICES[voice], stretch=stretch * raised)
    samples = resample(samples, source_hz=round(FLITE_HZ * raised), target_hz=REPLY_HZ)
    spoken = [(p, start / raised, end / raised) for p, start, end in segments if p != "pau"]
    start_s = max(spoken[0][1] - LEAD_S, 0.0)
    first = round(start_s * REPLY_HZ)
    last = min(round((spoken[-1][2] + TAIL_S) * REPLY_HZ), len(samples))
    samples = samples[first:last]
    samples = np.pad(samples, (0, -len(samples) % CODEC_ID_SAMPLES))
    spoken = [(phone, start - start_s, end - start_s) for phone, start, end in spoken]
    return np.clip(samples, -1, 1).astype(np.float32), spoken


def pick_voice(
    rng: np.random.Generator, *, split: str = "train", gender: str | None = None
) -> tuple[str, str]:
    """A random input voice and its gender; split "train", or "unseen" for the tests' voices."""
    if split == "unseen":
        groups = [UNSEEN_VOICES]
    else:
        groups = [FLITE_INPUTS if rng.random() < FLITE_SHARE else ESPEAK_INPUTS]
    voices = [(v, g) for group in groups for v, g in group.items() if gender in (None, g)]
    return voices[rng.integers(len(voices))]


def ask(
    text: str,
    *,
    rng: np.random.Generator,
    split: str = "train",
    voice: str | None = None,
    clean: bool = False,
) -> np.ndarray:
    """`text` said by an input voice in a random room: float32 at 16 kHz.

    split: "train", or "unseen" for the two voices that training never hears. voice: one name from
    `pick_voice`. clean: no room, only the voice's own variation of speed and pitch.
    """
    voice = voice or pick_voice(rng, split=split)[0]
    speed, pitch = rng.uniform(0.85, 1.2), rng.uniform(0.94, 1.07)
    if voice in FLITE_INPUTS:
        samples, _ = flite(text, voice=voice, stretch=float(pitch / speed), timed=False)
        samples = resample(
            samples, source_hz=round(FLITE_HZ * pitch / 100) * 100, target_hz=INPUT_HZ
        )
    else:
        accent = ESPEAK_ACCENTS[int(rng.choice(4, p=(0.55, 0.25, 0.1, 0.1)))]
        words_per_minute, level = round(160 * speed), round(50 + 350 * (pitch - 1.0))
        samples = espeak(text, voice=f"{accent}+{voice}", rate=words_per_minute, pitch=level)
        samples = resample(samples, source_hz=ESPEAK_HZ, target_hz=INPUT_HZ)
    if not clean:
        samples = into_room(samples, rng=rng)
    return np.clip(samples, -1, 1).astype(np.float32)


def into_room(samples: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """Speech at 16 kHz with random silence around it, light reverberation, level and noise."""
    before, after = (int(rng.uniform(0.02, 0.3) * INPUT_HZ) for _ in range(2))
    samples = np.pad(samples.astype(np.float64), (before, after))
    if rng.random() < 0.35:
        samples = reverberate(samples, rng=rng)
    rms = np.sqrt(np.mean(samples**2)) + 1e-9
    samples = samples * (10 ** (rng.uniform(-32, -16) / 20) / rms)
    if rng.random() < 0.85:
        snr_db = rng.uniform(10, 40)
        noise = rng.standard_normal(len(samples))
        if rng.random() < 0.5:  # pink-like: the noise of rooms and fans falls with frequency
            spectrum = np.fft.rfft(noise)
            noise = np.fft.irfft(spectrum / np.sqrt(1 + np.arange(len(spectrum))), len(noise))
        noise /= np.sqrt(np.mean(noise**2))
        samples = samples + noise * np.sqrt(np.mean(samples**2)) * 10 ** (-snr_db / 20)
    return samples / max(1.0, float(np.abs(samples).max()) / 0.99)


def reverberate(samples: np.ndarray, *, rng: np.random.Generator) -> np.ndarray:
    """A few reflections: an exponentially decaying noise tail behind the direct sound."""
    decay_s = rng.uniform(0.05, 0.25)
    tail = int(decay_s * INPUT_HZ)
    response = rng.standard_normal(tail) * np.exp(-6.9 * np.arange(tail) / tail)
    response *= rng.uniform(0.1, 0.45) / np.sqrt(np.sum(response**2))
    response[0] = 1.0
    size = _fast_length(len(samples) + tail)
    mixed = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return mixed[: len(samples)]


Segment = tuple[str, float, float]  # (phone, start s, end s)


def flite(
    text: str, *, voice: str, stretch: float = 1.0, timed: bool = True
) -> tuple[np.ndarray, list[Segment]]:
    """flite's wave at 16 kHz and, where `timed`, its phones (one sentence: times restart)."""
    words = [_program("flite", "flite"), "-voice", voice]
    words += ["--setf", f"duration_stretch={stretch:.4f}"] + (["-psdur"] if timed else [])
    samples, printed = _synthesise([*words, "-t", to_ascii(text).strip() + " "], FLITE_HZ, "-o")
    segments, start = [], 0.0
    for item in printed.split():
        phone, _, end = item.partition(":")
        segments.append((phone, start, float(end)))
        start = float(end)
    return samples, segments


def espeak(text: str, *, voice: str, rate: int = 160, pitch: int = 50) -> np.ndarray:
    """espeak-ng's wave at 22 050 Hz. rate: words per minute. pitch: 0-99.

    espeak-ng silently falls back to its plain voice for a variant it lacks: that is an error here.
    """
    variant = voice.partition("+")[2]
    if variant and variant not in espeak_variants():
        raise ValueError(
            f"espeak-ng has no voice variant {variant!r} here: install its data (Debian/Ubuntu: "
            "apt-get install espeak-ng espeak-ng-data)"
        )
    program = _program("espeak-ng", "espeak-ng")
    words = [program, "-v", voice, "-s", str(rate), "-p", str(min(max(pitch, 0), 99))]
    samples, _ = _synthesise([*words, "--", to_ascii(text)], ESPEAK_HZ, "-w")
    return samples


@lru_cache(maxsize=1)
def espeak_variants() -> frozenset[str]:
    """The variants that this machine's espeak-ng really has (file names without "!v/")."""
    words = [_program("espeak-ng", "espeak-ng"), "--voices=variant"]
    listing = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    files = [word for line in listing.splitlines() for word in line.split() if "!v/" in word]
    return frozenset(file.partition("!v/")[2] for file in files)


def _synthesise(words: list[str], sample_hz: int, out_flag: str) -> tuple[np.ndarray, str]:
    """Runs a synthesiser into a temporary wave file; float32 samples and what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "said.wav"
        # The file name goes before the text, which comes last in both programs' arguments.
        words = [words[0], out_flag, str(path), *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode or not path.exists():
            raise RuntimeError(f"{words[0]} failed on {words[-1]!r}: {done.stderr.strip()}")
        with wave.open(str(path)) as file:
            assert file.getframerate() == sample_hz, (words, file.getframerate())
            pcm = file.readframes(file.getnframes())
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768, done.stdout


@lru_cache(maxsize=4)
def _program(name: str, package: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise ValueError(
            f"the program {name} is missing: install it (Debian/Ubuntu: apt-get install {package})"
        )
    return path


def align_words(text: str, segments: list[Segment]) -> list[tuple[int, float, float]]:
    """Gives every spoken phone to the word it belongs to; (word index, start s, end s) each.

    flite prints phones without word borders, and pronounces some words by their neighbours ("the",
    "a"), so the phones are aligned with the words' own pronunciations by edit distance.
    """
    said = [phone for phone, _, _ in segments]
    expected: list[tuple[str, int]] = []
    for index, word in enumerate(text.split()):
        expected += [(phone, index) for phone in pronounce(word)]
    owners = _align([phone for phone, _ in expected], said)
    times: dict[int, tuple[float, float]] = {}
    for (_, start, end), owner in zip(segments, owners, strict=True):
        word = expected[owner][1]
        first = times[word][0] if word in times else start
        times[word] = (first, end)
    return [(word, *times[word]) for word in sorted(times)]


@lru_cache(maxsize=4096)
def pronounce(word: str) -> tuple[str, ...]:
    """flite's phones of one word said alone."""
    words = [_program("flite", "flite"), "-voice", "slt", "-ps", "-t", word + " ", "none"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return tuple(phone for phone in done.stdout.split() if phone != "pau")


def _align(expected: list[str], said: list[str]) -> list[int]:
    """For every said phone the index of its expected phone, by least edit distance."""
    if expected == said:
        return list(range(len(said)))
    rows, columns = len(expected) + 1, len(said) + 1
    cost = np.add.outer(np.arange(rows), np.arange(columns)).astype(float)
    for i in range(1, rows):
        for j in range(1, columns):
            swap = cost[i - 1, j - 1] + _difference(expected[i - 1], said[j - 1])
            cost[i, j] = min(swap, cost[i - 1, j] + 1, cost[i, j - 1] + 1)
    owners = [0] * len(said)
    i, j = rows - 1, columns - 1
    while j > 0:
        owners[j - 1] = max(i - 1, 0)
        if i and cost[i, j] == cost[i - 1, j - 1] + _difference(expected[i - 1], said[j - 1]):
            i, j = i - 1, j - 1
        elif i and cost[i, j] == cost[i - 1, j] + 1:
            i -= 1
        else:
            j -= 1
    return owners


def _difference(a: str, b: str) -> float:
    """0 for equal phones, 0.5 for two vowels or two consonants, 1.5 across."""
    if a == b:
        return 0.0
    return 0.5 if (a[0] in "aeiou") == (b[0] in "aeiou") else 1.5


def resample(samples: np.ndarray, *, source_hz: int, target_hz: int) -> np.ndarray:
    """Band-limited resampling by the Fourier transform (rates with a common divisor)."""
    if source_hz == target_hz:
        return samples
    divisor = int(np.gcd(source_hz, target_hz))
    up, down = target_hz // divisor, source_hz // divisor
    blocks = _fast_length(-(-(len(samples) + 64) // down))  # 64: room for the filter's ringing
    spectrum = np.fft.rfft(samples, blocks * down)
    kept = min(len(spectrum), blocks * up // 2 + 1)
    padded = np.zeros(blocks * up // 2 + 1, spectrum.dtype)
    padded[:kept] = spectrum[:kept]
    out = np.fft.irfft(padded, blocks * up) * (up / down)
    return out[: -(-len(samples) * up // down)].astype(np.float32)


def _fast_length(length: int) -> int:
    """The next product of 2, 3 and 5: transforms of such lengths are quick."""
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 1
