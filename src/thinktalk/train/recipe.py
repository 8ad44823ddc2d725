"""The whole of spark from nothing: data, every stage and lesson, and the finished folder.

A run folder holds one folder per stage (checkpoints, log.jsonl) and lesson (lessons.py), and the
tokenizer files in text/; the data folder holds the packed corpora and the rows of the playroom.
Whatever is finished is not done again, and a stage continues where its last leg stopped. Under
torchrun all processes train each stage together.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.media.prompt import Processor
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.dit import DiT
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker
from thinktalk.parallel import join, leave
from thinktalk.playroom import dataset
from thinktalk.train import lessons, spark
from thinktalk.train.align import AlignTask, Recordings
from thinktalk.train.assemble import adopt, assemble, finish, write_companions
from thinktalk.train.command import SPARK_STAGES
from thinktalk.train.conversations import Dialogues
from thinktalk.train.replies import ReplyTask
from thinktalk.train.seeing import EVERYTHING, LETTERS_FIRST, Look, SeeingTask
from thinktalk.train.speech import DiTTask, TokenizerTask, VocoderTask
from thinktalk.train.streams import Stream, codec_ids, open_streams
from thinktalk.train.thinker import ThinkerTask
from thinktalk.train.trainer import Stage, Task, is_done, train
from thinktalk.train.tuning import MODEL
from thinktalk.weights import CONFIG, usable_device

REPLIES, QUESTIONS, TEST_QUESTIONS = "replies_train", "questions_train", "questions_test_seen"
NUM_REPLIES, NUM_QUESTIONS, NUM_TEST_QUESTIONS = 40_000, 14_000, 800
DATA_SEED = 0
# On CPUs two lanes run side by side, one thread each; a stage waits for what it builds on.
LANES = (
    ("tokenizer", "typed", "align", "thinker", "talker"),
    ("vocoder", "dit", "letters", "seeing"),
)
BUILDS_ON = {"dit": ("tokenizer",), "letters": ("thinker",)}
SPOKEN_SHARE = 0.6  # of the Thinker's batches
POLL_S = 10
# glibc gives large blocks back to the system after every step; to keep them saves 10 to 20 %
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def train_spark(*, data: Path, run: Path, out: Path, device: str = "cpu") -> None:
    """Everything from nothing to a finished checkpoint in `out`; may be interrupted anywhere."""
    ranks = join(usable_device(device))
    ranks.in_turn(lambda: _prepare(data, run))
    if ranks.world == 1 and device == "cpu":
        os.environ |= KEEP_MEMORY
        lanes = [
            multiprocessing.get_context("spawn").Process(
                target=_run_lane, args=(lane,), kwargs={"data": data, "run": run}
            )
            for lane in LANES
        ]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
        if any(lane.exitcode for lane in lanes):
            raise ValueError("a stage failed; its error stands above. Run the command again")
    else:
        for name in STAGES:
            _run_stage(name, data=data, run=run, device=device, minutes=math.inf)
    ranks.in_turn(lambda: _make_base(data, run))
    for name in lessons.lessons():
        lessons.learn(name, data=data, run=run, device=device)
    if ranks.is_first:
        finish(lessons.last(run), out)
    leave()


def _prepare(data: Path, run: Path) -> None:
    make_data(data)
    if not (run / "text" / "tokenizer.json").exists():
        write_companions(run / "text")


def make_data(data: Path) -> None:
    """The packed corpora of the playroom, and the rows of the lessons."""
    replies = dataset.reply_sentences(seed=DATA_SEED, count=NUM_REPLIES)
    dataset.make_speech_corpus(data / REPLIES, replies)
    dataset.make_question_corpus(data / QUESTIONS, seed=DATA_SEED, num_cases=NUM_QUESTIONS)
    dataset.make_question_corpus(
        data / TEST_QUESTIONS, seed=DATA_SEED, num_cases=NUM_TEST_QUESTIONS, split="test"
    )
    lessons.make_sets(data)


def _make_base(data: Path, run: Path) -> None:
    """What all stages made, as the checkpoint that the lessons begin with."""
    base = run / lessons.BASE
    if not (base / CONFIG).exists():
        assemble(run, open_streams(data / REPLIES), base)


def run_stage(
    name: str, *, data: Path, run: Path, device: str = "cpu", minutes: float = math.inf
) -> bool:
    """Trains one stage or lesson of spark for at most `minutes`; True when it is done.

    Raises ValueError where one that it builds on is not.
    """
    if name not in SPARK_STAGES:
        raise ValueError(f"unknown stage {name!r}: choose one of {', '.join(SPARK_STAGES)}")
    for earlier in SPARK_STAGES[name][1]:
        if not _is_done(run / earlier):
            raise ValueError(
                f"stage {name} builds on {earlier}, which is not finished in {run}; train that "
                "first"
            )
    device = str(usable_device(device))
    if name in STAGES:
        done = _run_stage(name, data=data, run=run, device=device, minutes=minutes)
    else:
        join(device).in_turn(lambda: _make_base(data, run))
        done = lessons.learn(name, data=data, run=run, device=device, minutes=minutes)
    leave()
    return done


def _is_done(folder: Path) -> bool:
    """Of a stage, or of a lesson."""
    return is_done(folder) or (folder / MODEL).exists()


def _run_stage(name: str, *, data: Path, run: Path, device: str, minutes: float) -> bool:
    make_stage, make_task = STAGES[name]
    stage = make_stage()

    def make() -> Task:
        torch.manual_seed(stage.seed)
        return make_task(data, run)

    task = join(device).in_turn(make)  # files that tasks keep are made once
    return train(stage, task, run / name, device=device, minutes=minutes)


def _run_lane(names: tuple[str, ...], *, data: Path, run: Path) -> None:
    torch.set_num_threads(1)
    for name in names:
        while not all(is_done(run / before) for before in BUILDS_ON.get(name, ())):
            time.sleep(POLL_S)
        run_stage(name, data=data, run=run)


def _tokenizer_task(data: Path, run: Path) -> TokenizerTask:
    tokenizer = SpeechTokenizer(spark.SPEECH_TOKENIZER)
    return TokenizerTask(tokenizer, open_streams(data / REPLIES), reads=True)


def _vocoder_task(data: Path, run: Path) -> VocoderTask:
    config = spark.spark_config().token2wav_config.bigvgan_config
    return VocoderTask(BigVGAN(config), open_streams(data / REPLIES))


def _dit_task(data: Path, run: Path) -> DiTTask:
    streams = open_streams(data / REPLIES)
    config = spark.spark_config().token2wav_config.dit_config
    return DiTTask(DiT(config), streams, _ids(streams, run))


def _typed_task(data: Path, run: Path) -> ThinkerTask:
    return _thinker_task_on(Thinker(spark.spark_config().thinker_config), 0.0, data, run)


def _align_task(data: Path, run: Path) -> AlignTask:
    tokenizer = Tokenizer.from_folder(run / "text")
    train_set, test_set = (Recordings(data / name) for name in (QUESTIONS, TEST_QUESTIONS))
    return AlignTask(_thinker(run / "typed"), tokenizer, train_set, test_set)


def _thinker_task(data: Path, run: Path) -> ThinkerTask:
    return _thinker_task_on(_thinker(run / "align"), SPOKEN_SHARE, data, run)


def _thinker_task_on(thinker: Thinker, spoken_share: float, data: Path, run: Path) -> ThinkerTask:
    train_set, test_set = (_dialogues(data / name, run) for name in (QUESTIONS, TEST_QUESTIONS))
    return ThinkerTask(thinker, train_set, test_set, spoken_share=spoken_share)


def _thinker(stage: Path) -> Thinker:
    """The Thinker that a stage trained."""
    thinker = Thinker(spark.spark_config().thinker_config)
    adopt(thinker, stage, prefix="thinker.")
    return thinker


def _letters_task(data: Path, run: Path) -> SeeingTask:
    return _looking(LETTERS_FIRST, run)


def _seeing_task(data: Path, run: Path) -> SeeingTask:
    task = _looking(EVERYTHING, run)
    adopt(task.module, run / "letters")
    return task


def _looking(look: Look, run: Path) -> SeeingTask:
    text = run / "text"
    tokenizer, processor = Tokenizer.from_folder(text), Processor.from_folder(text)
    return SeeingTask(_thinker(run / "thinker"), tokenizer, processor, look)


def _talker_task(data: Path, run: Path) -> ReplyTask:
    config = spark.spark_config()
    streams = open_streams(data / REPLIES)
    return ReplyTask(
        Talker(config.talker_config),
        _thinker(run / "thinker").eval().requires_grad_(False),
        _dialogues(data / QUESTIONS, run),
        streams,
        _ids(streams, run),
        voice_tokens=spark.VOICE_TOKENS,
        codes=spark.SPEECH_TOKENIZER,
    )


def _dialogues(corpus: Path, run: Path) -> Dialogues:
    folder = run / "text"
    return Dialogues(
        Tokenizer.from_folder(folder),
        spark.spark_config().thinker_config,
        Processor.from_folder(folder),
        dataset.open_corpus(corpus),
    )


def _ids(streams: list[Stream], run: Path) -> list[NDArray[np.int64]]:
    tokenizer = SpeechTokenizer(spark.SPEECH_TOKENIZER)
    adopt(tokenizer, run / "tokenizer", prefix="tokenizer.")
    return [codec_ids(stream, tokenizer.eval()) for stream in streams]


STAGES: dict[str, tuple[Callable[[], Stage], Callable[[Path, Path], Task]]] = {
    "tokenizer": (spark.tokenizer, _tokenizer_task),
    "typed": (spark.typed, _typed_task),
    "align": (spark.align, _align_task),
    "thinker": (spark.thinker, _thinker_task),
    "letters": (spark.letters, _letters_task),
    "seeing": (spark.seeing, _seeing_task),
    "dit": (spark.dit, _dit_task),
    "talker": (spark.talker, _talker_task),
    "vocoder": (spark.vocoder, _vocoder_task),
}
