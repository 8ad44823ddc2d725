"""Every stage on a tiny real corpus: its loss falls, and what it trained becomes a model that runs.

The corpus is spoken by flite and espeak-ng; the networks are spark's, made smaller.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import thinktalk
from thinktalk.config import OmniConfig
from thinktalk.media.mel import voice_mel
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.model.speech_tokenizer import SpeechTokenizer
from thinktalk.playroom import dataset
from thinktalk.train import candidates, lessons, recipe, spark, streams
from thinktalk.train.assemble import adopt, assemble, finish, write_companions
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.conversations import IGNORED
from thinktalk.train.journal import curve
from thinktalk.train.packing import talker_rows
from thinktalk.train.speaking import spread_unused
from thinktalk.train.spelling import READER_FILE
from thinktalk.train.streams import codec_ids, open_streams
from thinktalk.train.trainer import Stage, train
from thinktalk.train.voice import (
    ENCODER_FILE,
    REF_MEL_FRAMES,
    load_speech_encoder,
    voice_print,
)

SENTENCES = (
    "the red bird is happy.", "three plus four is seven.", "the opposite of hot is cold.",
    "two, three, four, five, six.", "the capital of france is paris.", "you said: a big horse.",
)  # fmt: skip
STEPS = {
    "tokenizer": 30, "vocoder": 4, "typed": 20, "align": 12, "thinker": 16, "letters": 16,
    "seeing": 40, "dit": 30, "talker": 30,
}  # fmt: skip
FIGURES = {
    "tokenizer": "mel", "vocoder": "spectra", "typed": "text", "align": "words",
    "thinker": "text", "letters": "letters", "seeing": "words", "dit": "velocity",
    "talker": "codec",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    replies = [(text, voice, 1.0) for voice in ("Chelsie", "Ethan") for text in SENTENCES * 8]
    dataset.make_speech_corpus(folder / recipe.REPLIES, replies, workers=2)
    for name in (recipe.QUESTIONS, recipe.TEST_QUESTIONS):
        dataset.make_question_corpus(folder / name, seed=1, num_cases=12, workers=2)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All stages, a few steps each, in the order in which they build on one another."""
    folder = tmp_path_factory.mktemp("run")
    write_companions(folder / "text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        for name in STEPS:
            make_stage, make_task = recipe.STAGES[name]
            torch.manual_seed(0)
            train(quick(make_stage), make_task(data, folder), folder / name, log_every=2)
    return folder


def small_config() -> OmniConfig:
    config = spark_config()
    thinker, talker, token2wav = (
        config.thinker_config, config.talker_config, config.token2wav_config,
    )  # fmt: skip
    vocoder = replace(
        token2wav.bigvgan_config,
        upsample_initial_channel=64,
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3, 5),),
    )
    return OmniConfig(
        replace(thinker, text_config=replace(thinker.text_config, num_hidden_layers=1)),
        replace(talker, num_hidden_layers=1),
        replace(token2wav, bigvgan_config=vocoder),
    )


spark_config = spark.spark_config  # before the fixture puts the small one in its place


def quick(make_stage: Callable[[], Stage]) -> Stage:
    stage = make_stage()
    return replace(stage, steps=STEPS[stage.name], batch_size=4, warmup_steps=3, ema=0.5)


@pytest.mark.parametrize("name", STEPS)
def test_the_loss_falls(run: Path, name: str) -> None:
    losses = [row[FIGURES[name]] for row in curve(run / name) if FIGURES[name] in row]
    half = len(losses) // 2
    assert np.mean(losses[half:]) < np.mean(losses[:half])
    assert all(np.isfinite(losses))


@pytest.fixture(scope="module")
def base(run: Path, data: Path) -> Path:
    """What the stages make together."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        assemble(run, open_streams(data / recipe.REPLIES), run / lessons.BASE)
    return run / lessons.BASE


def test_the_result_is_a_checkpoint_that_answers(run: Path, data: Path, base: Path) -> None:
    model = thinktalk.load(base)
    assert list(model.voices) == ["Chelsie", "Ethan"]
    answer = thinktalk.generate(model, ["hello."], max_text_tokens=5, max_codec_ids=13)
    assert len(answer.audio) == 480 * len(answer.codec_ids)
    stream = open_streams(data / recipe.REPLIES)[0]
    original = SpeechTokenizer(spark.SPEECH_TOKENIZER).eval()
    adopt(original, run / "tokenizer", prefix="tokenizer.")
    same = codec_ids(stream, load_speech_encoder(base)) == codec_ids(stream, original)
    assert same.mean() > 0.98
    stored = best_weights(run / "thinker")["thinker.lm_head.weight"]
    assert torch.equal(model.omni.thinker.lm_head.weight, stored)


def test_the_lessons_follow_one_another_to_the_shipped_form(
    run: Path, data: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows, every lesson for two steps, the model's own pairs among them; stopped and continued."""
    few = {"steps": 2, "warmup_steps": 1, "batch_size": 2}
    short = {name: replace(one, changes=few) for name, one in lessons.lessons().items()}
    monkeypatch.setattr(lessons, "lessons", lambda: short)
    sets = {"cases": {"num_cases": 6, "speak": False}, "replies": {"num_cases": 8}}
    sets |= {
        name: lessons.SETS[name] | {"num_cases": 4}
        for name in ("heard", "counted", "sentences", "prompts")
    }
    monkeypatch.setattr(
        lessons, "SETS", {n: {"seed": 1, "workers": 1} | o for n, o in sets.items()}
    )
    monkeypatch.setattr(lessons, "SAMPLES", 4)
    monkeypatch.setattr(candidates, "SPARE_IDS", 60)
    monkeypatch.setattr(candidates, "LEAST_GAP", 0.01)
    monkeypatch.setattr(candidates, "MOST_OF_CHOSEN", 1e4)
    lessons.make_sets(data)
    assert not lessons.learn("omni", data=data, run=run, minutes=0)
    for name in short:
        assert lessons.learn(name, data=data, run=run), name
    finish(lessons.last(run), tmp_path / "spark")
    model = thinktalk.load(tmp_path / "spark")
    answer = thinktalk.generate(model, ["hello."], max_text_tokens=5, max_codec_ids=13)
    assert len(answer.audio) == 480 * len(answer.codec_ids)
    assert {path.name for path in (tmp_path / "spark").iterdir()} >= {ENCODER_FILE, "config.json"}
    assert not (tmp_path / "spark" / READER_FILE).exists()
    before, after = (load_file(f / "model.safetensors") for f in (base, tmp_path / "spark"))
    assert after["talker.codec_head.weight"].dtype == torch.bfloat16
    moved = [name for name in before if (before[name].to(after[name].dtype) != after[name]).any()]
    assert {name.split(".")[0] for name in moved} == {"thinker", "talker"}


def test_a_checkpoint_without_an_encoder_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no encoder of its codec ids"):
        load_speech_encoder(tmp_path)


def test_unused_codec_ids_share_one_class(run: Path, data: Path) -> None:
    """The Talker's trained softmax over classes is the full softmax over the spread weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        task = recipe._talker_task(data, run)
    task.module.load_state_dict(best_weights(run / "talker"))
    hidden = torch.randn(3, task.talker.config.hidden_size)
    by_class = task.classes.logits(task.talker, hidden).softmax(-1)
    spread_unused(task.talker, num_codes=task.classes.num_codes)
    full = task.talker.logits(hidden).softmax(-1)
    assert torch.allclose(by_class[:, :-1], full[:, task.classes.ids[:-1]], atol=1e-6)


def test_talker_rows_follow_the_layout_of_generation(run: Path, data: Path) -> None:
    """Prompt, voice, then one reply row for every codec id; the labels are the ids, one ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        task = recipe._talker_task(data, run)
    row, ids = task.train_replies[0]
    batch = task.collated([(row, ids)], np.random.default_rng(0))
    width, config = batch["ids"].shape[1], task.talker.config
    rows = {name: value[0] for name, value in talker_rows(batch, config=config).items()}
    learned = rows["labels"] != IGNORED
    start = int(learned.nonzero()[0])  # the position that predicts the first id
    assert rows["labels"][learned].tolist()[:-1] == ids.tolist()
    assert rows["codec_ids"][start - 1] == config.tts_codec_pad_token_id
    assert rows["codec_ids"][start] == config.tts_codec_start_token_id
    assert rows["codec_ids"][start + 1 : start + 1 + len(ids)].tolist() == ids.tolist()
    places = rows["places"].tolist()
    assert places[: start - 1] == list(range(start - 1))
    assert places[start - 1] == width
    reply = len(task.dialogues.tokenizer.encode(row["text"]))
    assert places[start : start + reply] == list(range(start - 1, start - 1 + reply))
    assert places[start + reply] == width + 1
    assert set(places[start + reply + 1 : start + 1 + len(ids)]) == {width + 2}


def test_codec_ids_of_a_stream_do_not_depend_on_the_cut(
    run: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = open_streams(data / recipe.REPLIES)[0]
    tokenizer = SpeechTokenizer(spark.SPEECH_TOKENIZER).eval()
    adopt(tokenizer, run / "tokenizer", prefix="tokenizer.")
    whole = codec_ids(stream, tokenizer)
    monkeypatch.setattr(streams, "CHUNK_FRAMES", 300)
    cut = codec_ids(stream, tokenizer)
    assert len(cut) == len(whole) == len(stream.mel) // 2
    assert (cut == whole).mean() > 0.99


def test_a_stream_is_its_clips_in_order(data: Path) -> None:
    corpus = dataset.open_corpus(data / recipe.REPLIES)
    stream = open_streams(data / recipe.REPLIES)[1]
    row = stream.rows[3]
    clip = corpus.clip(row)
    there = stream.wave[row["frame"] * 240 :][: len(clip)].astype(np.float32) / 32768
    assert np.array_equal(there, clip)
    middle = slice(10, row["frames"] - 10)
    mel = stream.mel[row["frame"] : row["frame"] + row["frames"]]
    assert np.abs(mel[middle] - voice_mel(clip)[middle]).max() < 0.01


def test_voices_differ_and_short_recordings_are_refused(data: Path) -> None:
    first, second = (
        voice_print(np.asarray(stream.mel, np.float32))
        for stream in open_streams(data / recipe.REPLIES)
    )
    assert first.cond.shape == (1, 160)
    assert first.ref_mel.shape == (1, REF_MEL_FRAMES, 80)
    assert np.abs(first.cond - second.cond).max() > 0.1
    with pytest.raises(ValueError, match="at least 4 s"):
        voice_print(np.zeros((100, 80), np.float32))


def test_transcripts_are_what_a_typed_question_spells(run: Path, data: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        task = recipe._align_task(data, run)
    targets = task.transcriber.targets(["The red bird, grün!", "what?"], [])
    words = [word - 1 for word in targets["words"].tolist()]
    tokenizer = Tokenizer.from_folder(run / "text")
    assert words == tokenizer.encode("the red bird grün") + tokenizer.encode("what")
    assert targets["phones_lengths"].tolist()[1] == 3  # w ah t
    assert 0 not in targets["phones"]


def test_aligning_trains_the_ear_and_nothing_else(run: Path) -> None:
    before, after = (best_weights(run / name) for name in ("typed", "align"))
    ear = "thinker.audio_tower."
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith(ear) for name in changed)
    assert all(name.startswith(ear) for name in changed)


def test_transcribing_drops_repeats_and_blanks(run: Path, data: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        transcriber = recipe._align_task(data, run).transcriber
    table = transcriber.thinker.model.embed_tokens.weight
    with torch.no_grad():
        transcriber.blank.weight.zero_()
        transcriber.blank.bias.fill_(1.0)
    silence = torch.zeros(len(table[0]))
    heard = torch.stack([table[5], table[5], silence, table[5], table[7], silence]) * 10
    assert transcriber.transcribe(heard, [4, 2]) == [[6, 6], [8]]


def test_thinker_learns_only_the_reply(run: Path, data: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spark, "spark_config", small_config)
        task = recipe._thinker_task(data, run)
    batch = task.batch(np.random.default_rng(2), 6)
    for ids, labels in zip(batch["ids"], batch["labels"], strict=True):
        learned = labels[labels != IGNORED]
        assert learned[-1] == task.thinker.config.eos_token_id
        text = task.dialogues.tokenizer.decode(ids.tolist(), keep_special=True)
        reply = task.dialogues.tokenizer.decode(learned.tolist(), keep_special=True)
        assert text.split("<|im_start|>assistant\n")[-1].startswith(reply)
    assert isinstance(task.thinker, nn.Module)
