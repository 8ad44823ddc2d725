"""Playroom data on disk: seeded cases in, packed corpora or a training set of JSONL and wav out.

Three writers, all parallel, all deterministic in (seed, index) whatever the number of workers, and
all resumable: finished parts are kept, so the same call continues an interrupted one.

`make_speech_corpus` and `make_question_corpus` write a *packed corpus*, a folder with

    waves.npy    int16 [samples]: all clips behind one another (numpy.load(..., mmap_mode="r"))
    index.jsonl  one row per clip or case, in order

A reply row: {"text", "voice": "Chelsie"|"Ethan", "stretch", "start", "samples", "words"}; the clip
is waves[start : start + samples] at 24 kHz, a multiple of 480 samples (one codec id is 480); words
is [[word index, start s, end s], ...] over text.split().

A question row: {"case": {...}, "clips": [{"text", "voice", "gender", "start", "samples"}, ...],
"messages": [...], "answer", "speech", "pace"}; clips at 16 kHz; messages in the official chat
format (content a string or a list of parts), where {"type": "audio", "audio": k} stands for
clips[k]; the canonical reply is not among the messages, it is `answer` (text) and `speech` (spoken
words, "" for a tool call). Tools, where offered, stand in case["tools"].

`make` writes the training schema: data.jsonl with rows {"messages": [... "<audio>" where a sound
stands ...], "audios": [paths], "speech": path or null, "speaker": voice, "tools"?} and wav files in
input/ (16 kHz) and speech/ (24 kHz), paths relative to the folder.
"""

import json
import multiprocessing
import wave
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from thinktalk.playroom import speech, talk
from thinktalk.playroom.talk import Case

Row = dict[str, Any]
Clip = np.ndarray  # int16
Maker = Callable[[Any], tuple[Row, list[Clip]]]
PART_ITEMS = 100  # what an interruption costs at most, per worker
SPOKEN_SHARE = 0.6  # of the questions that may be typed or spoken


@dataclass(frozen=True)
class Corpus:
    """A packed corpus opened for reading; the waves stay on disk."""

    waves: np.ndarray  # int16 [samples], memory-mapped
    rows: list[Row]

    def clip(self, row: Row) -> np.ndarray:
        """float32 samples of a reply row or of one of a question row's clips."""
        start = row["start"]
        return self.waves[start : start + row["samples"]].astype(np.float32) / 32768


def open_corpus(folder: str | Path) -> Corpus:
    """Opens what `make_speech_corpus` or `make_question_corpus` wrote."""
    folder = Path(folder)
    if not (folder / "waves.npy").exists():
        raise ValueError(f"{folder} holds no finished corpus (waves.npy): make it first")
    lines = (folder / "index.jsonl").read_text(encoding="utf-8").splitlines()
    return Corpus(np.load(folder / "waves.npy", mmap_mode="r"), [json.loads(li) for li in lines])


def make_speech_corpus(
    out: str | Path, sentences: Sequence[tuple[str, str, float]], *, workers: int = 2
) -> None:
    """Speaks (text, reply voice, stretch) triples into a packed corpus of replies."""
    _make_packed(Path(out), list(sentences), _reply_clip, workers=workers, label="replies")


def make_question_corpus(
    out: str | Path,
    *,
    seed: int,
    num_cases: int,
    split: talk.Split = "train",
    voices: str = "train",
    task: str | None = None,
    typed: bool = False,
    workers: int = 2,
) -> None:
    """Draws cases and speaks what the user says into a packed corpus of questions.

    voices: "train" or "unseen". typed: whether some questions may stay typed; otherwise every
    question that can be spoken is. task: one task only.
    """
    maker = partial(_question_clips, seed=seed, split=split, voices=voices, task=task, typed=typed)
    _make_packed(Path(out), list(range(num_cases)), maker, workers=workers, label="questions")


def reply_sentences(*, seed: int, count: int) -> list[tuple[str, str, float]]:
    """`count` (text, voice, stretch) train replies: half of them sentences, half task answers.

    Both voices say different texts; stretch is 1.4 or 0.8 for a share that covers `pace`.
    """
    rng = np.random.default_rng([seed, 2])
    voices = tuple(speech.REPLY_VOICES)
    found: dict[tuple[str, str, float], None] = {}
    repeats_left = count * 12  # answers of finite tasks run out; sentences take their place
    while len(found) < count:
        repeats_left -= 1
        task = "repeat" if rng.random() < 0.5 or repeats_left < 0 else None
        case = talk.sample(rng, split="train", task=task)
        if case.speech:
            pace = case.pace if case.task == "pace" else float(rng.choice([1, 1, 1, 1, 1.4, 0.8]))
            stretch = pace if case.task in ("pace", "repeat") and rng.random() < 0.5 else 1.0
            found[case.speech, voices[rng.integers(2)], stretch] = None
    return list(found)


def hear(
    case: Case, *, rng: np.random.Generator, voices: str = "train", spoken: bool = True
) -> tuple[list[Row], list[Clip], list[Row]]:
    """What the user says in a case: (clip rows without offsets, int16 clips, chat messages)."""
    voice, gender = speech.pick_voice(rng, split=voices, gender=case.gender)
    rows: list[Row] = []
    clips: list[Clip] = []

    def say(text: str) -> Row:
        samples = speech.ask(text, rng=rng, voice=voice)
        rows.append({"text": text, "voice": voice, "gender": gender, "samples": len(samples)})
        clips.append(_int16(samples))
        return {"type": "audio", "audio": len(clips) - 1}

    messages: list[Row] = []
    if case.system is not None:
        messages.append({"role": "system", "content": case.system})
    for number, (role, text) in enumerate(case.turns):
        if role != "user":
            messages.append(talk.chat_message(role, text))
            continue
        last = number == len(case.turns) - 1
        parts: list[Row] = [say(case.heard)] if last and case.heard else []
        if text:
            parts.append(say(text.lower()) if spoken else {"type": "text", "text": text})
        messages.append({"role": role, "content": parts})
    return rows, clips, messages


def make(
    out: str | Path,
    *,
    seed: int,
    num_cases: int,
    split: talk.Split = "train",
    voices: str = "train",
    workers: int = 2,
) -> None:
    """Writes a training set: data.jsonl, input/*.wav (16 kHz) and speech/*.wav (24 kHz)."""
    out = Path(out)
    for folder in ("input", "speech", "rows"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    todo = [i for i in range(num_cases) if not (out / "rows" / f"{i:06d}.json").exists()]
    write = partial(_write_case, out=out, seed=seed, split=split, voices=voices)
    for _ in _in_parallel(write, todo, workers=workers, label="cases", done=num_cases - len(todo)):
        pass
    rows = [(out / "rows" / f"{i:06d}.json").read_text("utf-8") for i in range(num_cases)]
    _replace(out / "data.jsonl", "".join(row + "\n" for row in rows).encode())


def _write_case(index: int, *, out: Path, seed: int, split: talk.Split, voices: str) -> None:
    """One row of the training schema and its wav files; the row comes last: it marks success."""
    rng = np.random.default_rng([seed, 1, index])
    case = talk.sample(rng, split=split)
    _, clips, messages = hear(case, rng=rng, voices=voices, spoken=rng.random() < SPOKEN_SHARE)
    audios = []
    for number, clip in enumerate(clips):
        audios.append(f"input/{index:06d}_{number}.wav")
        _write_wav(out / audios[-1], clip, sample_hz=speech.INPUT_HZ)
    messages = [m | {"content": _tagged(m["content"])} for m in messages]
    messages.append(talk.chat_message("assistant", case.answer))
    speaker = list(speech.REPLY_VOICES)[rng.integers(2)]
    row: Row = {"messages": messages, "audios": audios, "speech": None, "speaker": speaker}
    if case.speech:
        row["speech"] = f"speech/{index:06d}.wav"
        samples = speech.speak(case.speech, voice=speaker, stretch=case.pace)
        _write_wav(out / row["speech"], _int16(samples), sample_hz=speech.REPLY_HZ)
    if case.tools:
        row["tools"] = list(case.tools)
    _replace(out / "rows" / f"{index:06d}.json", json.dumps(row, ensure_ascii=False).encode())


def _tagged(content: str | list[Row]) -> str:
    """Chat content as one string with "<audio>" where a sound stands."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return "".join("<audio>" if part["type"] == "audio" else part["text"] for part in parts)


def _reply_clip(item: tuple[str, str, float]) -> tuple[Row, list[Clip]]:
    text, voice, stretch = item
    said = speech.utter(text, voice=voice, stretch=stretch)
    words = [[index, round(start, 4), round(end, 4)] for index, start, end in said.words]
    row = {"text": text, "voice": voice, "stretch": stretch, "words": words}
    return row | {"samples": len(said.samples)}, [_int16(said.samples)]


def _question_clips(
    index: int, *, seed: int, split: talk.Split, voices: str, task: str | None, typed: bool
) -> tuple[Row, list[Clip]]:
    rng = np.random.default_rng([seed, 0, index])
    case = talk.sample(rng, split=split, task=task)
    spoken = rng.random() < SPOKEN_SHARE if typed else True
    rows, clips, messages = hear(case, rng=rng, voices=voices, spoken=spoken)
    reply = {"answer": case.answer, "speech": case.speech, "pace": case.pace}
    return {"case": asdict(case), "clips": rows, "messages": messages} | reply, clips


def _make_packed(
    out: Path,
    items: list[Any],
    maker: Maker,
    *,
    workers: int,
    label: str,
) -> None:
    """Makes parts of PART_ITEMS items (skipping finished ones), then packs them into one file."""
    if (out / "waves.npy").exists():
        return
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    numbers = range(-(-len(items) // PART_ITEMS))
    todo = [number for number in numbers if not (parts / f"{number:05d}.jsonl").exists()]
    make_part = partial(_make_part, parts=parts, items=items, maker=maker)
    done = len(numbers) - len(todo)
    for _ in _in_parallel(make_part, todo, workers=workers, label=f"{label}, parts", done=done):
        pass
    _pack(out, [parts / f"{number:05d}" for number in numbers])


def _make_part(number: int, *, parts: Path, items: list[Any], maker: Maker) -> None:
    """One part: clips behind one another in NNNNN.pcm, then the rows in NNNNN.jsonl."""
    made = [maker(item) for item in items[number * PART_ITEMS : (number + 1) * PART_ITEMS]]
    pcm = b"".join(clip.tobytes() for _, clips in made for clip in clips)
    _replace(parts / f"{number:05d}.pcm", pcm)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row, _ in made)
    _replace(parts / f"{number:05d}.jsonl", lines.encode())


def _pack(out: Path, parts: list[Path]) -> None:
    """Joins finished parts into waves.npy and index.jsonl with absolute offsets."""
    total = sum(part.with_suffix(".pcm").stat().st_size for part in parts) // 2
    unfinished = out / "waves.part"
    waves = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.int16, shape=(total,))
    position, lines = 0, []
    for part in parts:
        pcm = np.fromfile(part.with_suffix(".pcm"), np.int16)
        filled = position
        waves[position : position + len(pcm)] = pcm
        for line in part.with_suffix(".jsonl").read_text("utf-8").splitlines():
            row = json.loads(line)
            for clip in row.get("clips", [row]):
                clip["start"] = filled
                filled += clip["samples"]
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        position += len(pcm)
        assert filled == position, (part, filled, position)
    waves.flush()
    _replace(out / "index.jsonl", "".join(lines).encode())
    unfinished.replace(out / "waves.npy")
    for part in parts:
        part.with_suffix(".pcm").unlink()
        part.with_suffix(".jsonl").unlink()
    (out / "parts").rmdir()


def _in_parallel(
    work: Callable[[Any], Any], items: list[Any], *, workers: int, label: str, done: int = 0
) -> Iterable[Any]:
    """`work` over items in order, in processes where there is more than one worker."""
    bar = partial(tqdm, desc=label, total=len(items) + done, initial=done)
    if workers <= 1:
        yield from bar(map(work, items))
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from bar(pool.imap(work, items, chunksize=1))


def _int16(samples: np.ndarray) -> Clip:
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def _write_wav(path: Path, clip: Clip, *, sample_hz: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(sample_hz)
        file.writeframes(clip.tobytes())


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is either absent or whole."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
