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

`make` writes the training schema: data.jsonl with a row per case (`cases.Example.row`: messages
with <image>, <audio> and <video> where media stand, lists of their files, "speech", "speaker",
"task", "answer", ...) and the files: PNG, FLAC (16 kHz), MP4, and the speech of the reply as FLAC
(24 kHz). Cases lie in folders of SHARD_CASES, each with its own rows.jsonl; paths are relative to
the whole. Videos bring their own sound.
"""

import io
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from thinktalk.media.chat import SPEECH_SYSTEM_PROMPT
from thinktalk.media.encode import encode
from thinktalk.playroom import cases, speech, talk
from thinktalk.playroom.cases import Clip, Row, hear, to_int16

Maker = Callable[[Any], tuple[Row, list[Clip]]]
PART_ITEMS = 100  # what an interruption costs at most, per worker
SHARD_CASES = 100  # likewise
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
        case = cases.draw(rng, split="train", task=task)
        if case.speech:
            pace = case.pace if case.task == "pace" else float(rng.choice([1, 1, 1, 1, 1.4, 0.8]))
            stretch = pace if case.task in ("pace", "repeat") and rng.random() < 0.5 else 1.0
            found[case.speech, voices[rng.integers(2)], stretch] = None
    return list(found)


def make(
    out: str | Path,
    *,
    seed: int,
    num_cases: int,
    split: talk.Split = "train",
    voices: str = "train",
    tasks: Sequence[str] = (),
    asked: cases.Asked | None = None,
    speak: bool = True,
    workers: int = 2,
) -> None:
    """Writes the first `num_cases` cases of a split as a training set; a larger number later adds.

    tasks: only these, in turn; else all, mixed. asked: see `cases.make`. speak: whether replies
    are synthesised, which takes most of the time; else "speech" is null, and every second train
    row has the system prompt of speech. Raises ValueError for
    unknown tasks, where `out` holds another set, and where files cannot be written: what is
    finished is kept, then.
    """
    if num_cases < 1 or workers < 1:
        raise ValueError(f"{num_cases} cases by {workers} workers: both must be at least 1")
    if unknown := set(tasks) - set(cases.TASKS):
        known = ", ".join(cases.TASKS)
        raise ValueError(f"unknown playroom task {sorted(unknown)[0]!r}: choose of {known}")
    out = Path(out)
    (out / "shards").mkdir(parents=True, exist_ok=True)
    order = {"seed": seed, "split": split, "voices": voices, "tasks": list(tasks), "asked": asked}
    order |= {"speak": speak}
    _check_order(out / "order.json", order)
    counts = [min(SHARD_CASES, num_cases - s) for s in range(0, num_cases, SHARD_CASES)]
    todo = [s for s, count in enumerate(counts) if len(_shard_rows(out, s)) < count]
    write = partial(_write_shard, out=out, counts=counts, order=order)
    done = num_cases - sum(counts[shard] for shard in todo)
    with tqdm(desc=f"{split} cases", total=num_cases, initial=done, unit="case") as bar:
        try:
            for shard, _ in zip(todo, _in_parallel(write, todo, workers=workers), strict=True):
                bar.update(counts[shard])
        except OSError as error:
            remedy = "put that right and run the same command again"
            raise ValueError(f"{out} cannot be written ({error.strerror}): {remedy}") from error
    rows = [row for s, count in enumerate(counts) for row in _shard_rows(out, s)[:count]]
    _replace(out / "data.jsonl", "".join(row + "\n" for row in rows).encode())


def _check_order(path: Path, order: Row) -> None:
    """Keeps what a folder was made for, and refuses to mix it with something else."""
    if path.exists() and (found := json.loads(path.read_text("utf-8"))) != order:
        raise ValueError(f"{path.parent} holds another set ({found}): give another folder")
    _replace(path, json.dumps(order).encode())


def _shard_rows(out: Path, shard: int) -> list[str]:
    path = out / "shards" / f"{shard:05d}" / "rows.jsonl"
    return path.read_text("utf-8").splitlines() if path.exists() else []


def _write_shard(shard: int, *, out: Path, counts: list[int], order: Row) -> None:
    """One folder of cases; it has its name only when it is whole."""
    folder = out / "shards" / f"{shard:05d}"
    unfinished = folder.with_suffix(".part")
    for old in (unfinished, folder):
        if old.exists():
            shutil.rmtree(old)
    unfinished.mkdir()
    lines = []
    for number in range(shard * SHARD_CASES, shard * SHARD_CASES + counts[shard]):
        tasks = order["tasks"]
        example = cases.make(
            seed=order["seed"],
            split=order["split"],
            number=number,
            task=tasks[number % len(tasks)] if tasks else None,
            asked=order["asked"],
            voices=order["voices"],
        )
        row = example.row()
        if order["split"] == "train" and not order["speak"] and number % 2:
            _as_when_spoken(row)
        for name, content in _media_files(example, row, number=number, speak=order["speak"]):
            (unfinished / name).write_bytes(content)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (unfinished / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    unfinished.rename(folder)


def _as_when_spoken(row: Row) -> None:
    """The row under the system prompt of speech, unless it has another. Rows with speech get it
    where they are read; a model that answers aloud and in writing must be trained under both."""
    if row["messages"][0]["role"] != "system":
        row["messages"].insert(0, {"role": "system", "content": SPEECH_SYSTEM_PROMPT})


def _media_files(
    example: cases.Example, row: Row, *, number: int, speak: bool
) -> list[tuple[str, bytes]]:
    """(name, content) of a case's files; their paths take the place of the media in the row."""
    files: list[tuple[str, bytes]] = []

    def file(name: str, content: bytes) -> str:
        files.append((f"{number:07d}{name}", content))
        return f"shards/{number // SHARD_CASES:05d}/{number:07d}{name}"

    row["images"] = [file(f"_{k}.png", _png(pixels)) for k, pixels in enumerate(row["images"])]
    row["audios"] = [
        file(f"_{k}.flac", encode(samples, format="flac", sample_rate=speech.INPUT_HZ))
        for k, samples in enumerate(row["audios"])
    ]
    row["videos"] = [file(f"_{k}.mp4", content) for k, content in enumerate(row["videos"])]
    text, row["speech"] = row["speech"], None
    if text and speak:
        said = speech.speak(text, voice=example.speaker, stretch=example.case.pace)
        row["speech"] = file(
            "_reply.flac", encode(said, format="flac", sample_rate=speech.REPLY_HZ)
        )
    return files


def _png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=3)
    return file.getvalue()


def _reply_clip(item: tuple[str, str, float]) -> tuple[Row, list[Clip]]:
    text, voice, stretch = item
    said = speech.utter(text, voice=voice, stretch=stretch)
    words = [[index, round(start, 4), round(end, 4)] for index, start, end in said.words]
    row = {"text": text, "voice": voice, "stretch": stretch, "words": words}
    return row | {"samples": len(said.samples)}, [to_int16(said.samples)]


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
    with tqdm(desc=f"{label}, parts", total=len(numbers), initial=done) as bar:
        for _ in _in_parallel(make_part, todo, workers=workers):
            bar.update()
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


def _in_parallel(work: Callable[[Any], Any], items: list[Any], *, workers: int) -> Iterable[Any]:
    """`work` over items in order, in processes where there is more than one worker.

    Raises ValueError when one of them is killed, for want of memory for example.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        try:
            yield from pool.map(work, items)
        except BrokenProcessPool:
            raise ValueError(
                "a worker died, perhaps for want of memory; the same call goes on where it was, "
                "and fewer workers need less"
            ) from None


def _replace(path: Path, content: bytes) -> None:
    """Writes a file so that it is either absent or whole."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_bytes(content)
    unfinished.replace(path)
