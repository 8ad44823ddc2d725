"""generate: how replies and speech begin and end, what is refused, and what each option does.

That its numbers are the reference's is shown in test_parity.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omni_cases import CASES, SYSTEM, Turns, messages
from ours_omni import GREEDY_SPEECH, answer, recording, saying, watching
from torch import Tensor

import thinktalk
from thinktalk import Answer, Sampling
from thinktalk.media.chat import DEFAULT_SYSTEM_PROMPT, SPEECH_SYSTEM_PROMPT
from thinktalk.media.prompt import Prompt
from thinktalk.weights import LoadedModel

MODULE = import_module("thinktalk.generate")  # thinktalk.generate is the function
SAMPLES_PER_ID = 480
QUESTION = "What do you see and hear?"
TEXT = CASES["text"]
SHORT: dict[str, Any] = {"max_text_tokens": 5, "max_codec_ids": 8}
HOT = Sampling(temperature=1.5)


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return thinktalk.load(tiny_checkpoint("7b"))


@pytest.fixture
def prompts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Prompt]]:
    """The prompts that generate builds."""
    built: list[Prompt] = []
    monkeypatch.setattr(MODULE, "build_prompt", recording(MODULE.build_prompt, built))
    yield built


def text_of(model: LoadedModel, prompt: Prompt) -> str:
    tokenizer = MODULE.load_tokenizer(model.folder)
    return tokenizer.decode(prompt.ids.tolist(), keep_special=True)


# ---- where replies and speech end


def test_limits_cut_and_change_nothing_before(model: LoadedModel) -> None:
    long = answer(model, TEXT, max_text_tokens=7, max_codec_ids=13)
    assert (len(long.text_ids), len(long.codec_ids), len(long.wave)) == (7, 13, 13 * SAMPLES_PER_ID)
    cut = answer(model, TEXT, max_text_tokens=7, max_codec_ids=5)
    assert cut.text_ids == long.text_ids and cut.codec_ids == long.codec_ids[:5]
    assert len(cut.wave) == 5 * SAMPLES_PER_ID
    assert answer(model, TEXT, max_text_tokens=3, max_codec_ids=1).text_ids == long.text_ids[:3]


def test_the_last_id_leaves_no_row(model: LoadedModel) -> None:
    """Four ids and a stop id are spoken as five ids at the limit are: of both, four rows come."""
    free = answer(model, TEXT, **SHORT)
    stopped = answer(model, TEXT, text_stop=free.text_ids[4], **SHORT)
    assert len(free.text_ids) == 5 and stopped.text_ids == free.text_ids[:4]
    assert stopped.codec_ids == free.codec_ids
    four = answer(model, TEXT, max_text_tokens=4, max_codec_ids=8)
    assert four.text_ids == stopped.text_ids and four.codec_ids != stopped.codec_ids


def test_a_reply_of_one_token(model: LoadedModel) -> None:
    """It is spoken, whether a stop id or the limit follows it."""
    free = answer(model, TEXT, **SHORT)
    stopped = answer(model, TEXT, text_stop=free.text_ids[1], **SHORT)
    limited = answer(model, TEXT, max_text_tokens=1, max_codec_ids=8)
    assert stopped.text_ids == limited.text_ids == free.text_ids[:1]
    assert stopped.codec_ids == limited.codec_ids and len(limited.codec_ids) == 8
    assert limited.codec_ids != free.codec_ids


def test_an_empty_reply(model: LoadedModel, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(MODULE, "choose", saying([model.config.thinker_config.eos_token_id]))
    heard: list[str] = []
    reply = thinktalk.generate(model, [QUESTION], on_text=heard.append)
    assert (reply.text, reply.text_ids, reply.codec_ids, heard) == ("", [], [], [])
    assert reply.audio.shape == (0,) and reply.audio.dtype == np.float32
    with pytest.raises(ValueError, match="there is no sound to save"):
        reply.save(tmp_path / "answer.wav")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stop", [8292, 8294])
def test_speech_without_ids(model: LoadedModel, monkeypatch, stop: int) -> None:
    monkeypatch.setattr(MODULE, "choose", saying([72, 258], [stop]))
    reply = thinktalk.generate(model, [QUESTION])
    assert reply.text_ids == [72] and reply.codec_ids == [] and reply.audio.shape == (0,)


def test_a_full_context_ends_the_reply(model: LoadedModel, monkeypatch, prompts) -> None:
    thinktalk.generate(model, [QUESTION], speak=False, max_text_tokens=1)
    thinker = model.config.thinker_config
    text = replace(thinker.text_config, max_position_embeddings=len(prompts[0].ids) + 3)
    config = replace(model.config, thinker_config=replace(thinker, text_config=text))
    monkeypatch.setattr(model.omni, "config", config)
    assert len(thinktalk.generate(model, [QUESTION], speak=False).text_ids) == 3


@pytest.mark.parametrize("limit", ["max_text_tokens", "max_codec_ids"])
def test_limits_below_one(model: LoadedModel, limit: str) -> None:
    options: dict[str, Any] = {limit: 0}
    with pytest.raises(ValueError, match=f"{limit} is 0; it must be at least 1"):
        thinktalk.generate(model, [QUESTION], **options)


# ---- voices


def test_voices_differ(model: LoadedModel) -> None:
    ours, theirs = (answer(model, TEXT, voice=v, **SHORT) for v in ("Chelsie", "Ethan"))
    assert ours.text_ids == theirs.text_ids and ours.codec_ids != theirs.codec_ids
    same_ids = answer(model, TEXT, voice="Ethan", forced=ours.said, **SHORT)
    assert (same_ids.wave - ours.wave).norm() > 0.01 * ours.wave.norm()


def test_unknown_voice(model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="unknown voice 'Ann'; choose one of Chelsie, Ethan"):
        thinktalk.generate(model, ["missing.wav"], voice="Ann")  # before any media are read


def test_a_checkpoint_without_voices(model: LoadedModel) -> None:
    silent = replace(model, voices={})
    with pytest.raises(ValueError, match=r"add its spk_dict\.pt, or use speak=False"):
        thinktalk.generate(silent, [QUESTION])
    assert thinktalk.generate(silent, [QUESTION], speak=False, max_text_tokens=2).text_ids


def test_text_only(model: LoadedModel, prompts: list[Prompt]) -> None:
    """No Talker, no sound, no voice needed, and the plain system prompt."""
    with watching(model.omni.talker) as spoken:
        reply = thinktalk.generate(model, [QUESTION], speak=False, voice="nobody", **SHORT)
    assert len(reply.text_ids) == 5 and not spoken
    assert reply.codec_ids == [] and reply.audio.shape == (0,)
    assert DEFAULT_SYSTEM_PROMPT in text_of(model, prompts[0])


# ---- sampling


def test_seeds(model: LoadedModel) -> None:
    def ids(**options) -> tuple[list[int], list[int]]:
        return answer(model, TEXT, exact=False, **SHORT | options).said

    assert ids(text=HOT, speech=HOT, seed=3) == ids(text=HOT, speech=HOT, seed=3)
    assert ids(text=HOT, seed=3)[0] != ids(text=HOT, seed=4)[0]
    assert ids(text=HOT, seed=3)[0] == ids(text=HOT, speech=HOT, seed=3)[0]
    greedy, three, four = ids(), ids(speech=HOT, seed=3), ids(speech=HOT, seed=4)
    assert (
        greedy[0] == three[0] == four[0] and len({tuple(x[1]) for x in (greedy, three, four)}) == 3
    )
    assert ids(seed=3) == greedy  # greedy draws nothing


def test_the_seed_is_in_the_sound(model: LoadedModel) -> None:
    for exact in (True, False):
        first, again, other = (
            answer(model, TEXT, exact=exact, seed=seed, **SHORT).wave for seed in (3, 3, 4)
        )
        assert torch.equal(first, again) and (first - other).norm() > 0.01 * first.norm()


def test_speech_samples_as_the_official_default(model: LoadedModel) -> None:
    def ids(**options) -> list[int]:
        return thinktalk.generate(model, [QUESTION], **SHORT, **options).codec_ids

    official = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
    assert ids() == ids(speech=official) != ids(speech=GREEDY_SPEECH)


def changing_speech(monkeypatch, change: Callable[[Tensor], Tensor]) -> None:
    talker = import_module("thinktalk.model.talker").Talker
    logits = talker.logits
    monkeypatch.setattr(talker, "logits", lambda self, hidden: change(logits(self, hidden)))


@pytest.mark.parametrize("speech", [GREEDY_SPEECH, Sampling(temperature=5.0)])
def test_unusable_codec_ids_are_never_sampled(model: LoadedModel, monkeypatch, speech) -> None:
    """Even if the Talker wants nothing else: no special ids, and none that the DiT cannot read."""
    num_codes = model.config.token2wav_config.dit_config.num_embeds
    unusable = torch.ones(model.config.talker_config.vocab_size, dtype=torch.bool)
    unusable[:num_codes] = False
    unusable[[8292, 8294]] = False
    assert unusable[[8193, 8293, 8296, 8447]].all()
    changing_speech(monkeypatch, lambda logits: logits + 1000 * unusable)
    ids = thinktalk.generate(model, [QUESTION], speech=speech, **SHORT).codec_ids
    assert len(ids) == 8 and max(ids) < num_codes


def test_the_talkers_history(model: LoadedModel, monkeypatch) -> None:
    """The stop id 8292 stands in it from the start, every id that was said later on."""

    def change(logits: Tensor) -> Tensor:
        logits = torch.zeros_like(logits)
        logits[..., 8292], logits[..., 5], logits[..., 6] = 1.02, 1.00, 0.99
        return logits

    changing_speech(monkeypatch, change)

    def ids(penalty: float) -> list[int]:
        speech = Sampling(repetition_penalty=penalty)
        return thinktalk.generate(model, [QUESTION], speech=speech, **SHORT).codec_ids

    assert ids(1.0) == []
    assert ids(1.05) == [5, 6]  # then 8292 leads again: 1.02 / 1.05 > 1.00 / 1.05


def test_penalty_of_the_text_counts_the_prompt(model: LoadedModel, monkeypatch) -> None:
    thinker = type(model.omni.thinker)
    logits = thinker.logits

    def change(self, hidden: Tensor) -> Tensor:
        changed = torch.zeros_like(logits(self, hidden))
        changed[..., ord("W") - 33], changed[..., 311] = 1.02, 1.00
        return changed

    monkeypatch.setattr(thinker, "logits", change)

    def first_id(penalty: float) -> int:
        text = Sampling(repetition_penalty=penalty)
        reply = thinktalk.generate(model, [QUESTION], speak=False, text=text, max_text_tokens=1)
        return reply.text_ids[0]

    assert first_id(1.0) == ord("W") - 33  # stands in the question
    assert first_id(1.05) == 311


# ---- text


def test_pieces_join_to_the_text(model: LoadedModel, monkeypatch) -> None:
    """Characters of several tokens come whole, special tokens not at all, a cut one as its sign."""
    tokenizer = MODULE.load_tokenizer(model.folder)
    ids = [*tokenizer.encode("Grün 你"), 256, *tokenizer.encode("好!"), tokenizer.encode("é")[0]]
    monkeypatch.setattr(MODULE, "choose", saying(ids, [258]))
    heard: list[str] = []
    reply = thinktalk.generate(model, [QUESTION], speak=False, on_text=heard.append)
    assert reply.text_ids == ids
    assert "".join(heard) == reply.text == "Grün 你好!\N{REPLACEMENT CHARACTER}"
    assert heard[:4] == ["G", "r", "ü", "n"] and all(heard)


def test_text_comes_while_it_is_written(model: LoadedModel, monkeypatch) -> None:
    tokenizer = MODULE.load_tokenizer(model.folder)
    monkeypatch.setattr(MODULE, "choose", saying(tokenizer.encode("ab"), [258]))
    with watching(model.omni.thinker) as steps:
        seen: list[int] = []
        thinktalk.generate(
            model, [QUESTION], speak=False, on_text=lambda _: seen.append(len(steps))
        )
    assert seen == [1, 2]


def test_tools(model: LoadedModel, monkeypatch, prompts: list[Prompt]) -> None:
    call = '<tool_call>\n{"name": "move", "arguments": {"steps": 2}}\n</tool_call>'
    ids = MODULE.load_tokenizer(model.folder).encode(call)
    monkeypatch.setattr(MODULE, "choose", saying(ids, [258]))
    tool = {"type": "function", "function": {"name": "move", "parameters": {"type": "object"}}}
    reply = thinktalk.generate(model, [QUESTION], tools=[tool])
    [found] = reply.tool_calls
    assert (found.name, found.arguments) == ("move", {"steps": 2}) and reply.text == call
    assert not reply.codec_ids and not len(reply.audio), "a call is not spoken"
    assert '"name": "move"' in text_of(model, prompts[0])


# ---- prompts


def test_system_prompts(model: LoadedModel, prompts: list[Prompt]) -> None:
    """Speech has the official one; the user's own takes its place, and is spoken, too."""

    def ask(inputs, **options) -> tuple[str, Answer]:
        reply = thinktalk.generate(model, inputs, **SHORT, **options)
        return text_of(model, prompts[-1]), reply

    text, official = ask([QUESTION])
    assert text.startswith(
        f"<|im_start|>system\n{SPEECH_SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user"
    )
    text, persona = ask([QUESTION], system="You are a pirate.")
    assert text.startswith("<|im_start|>system\nYou are a pirate.<|im_end|>\n<|im_start|>user")
    assert persona.text_ids != official.text_ids
    assert len(persona.codec_ids) == 8 and np.abs(persona.audio).max() > 0.01
    text, _ = ask(messages([SYSTEM, *TEXT[1:]]), system="Unused.")
    assert text.startswith("<|im_start|>system\nYou are Qwen.<|im_end|>") and "Unused" not in text


def test_earlier_turns_matter(model: LoadedModel) -> None:
    turns: Turns = CASES["turns"]
    changed = [*turns[:2], ("assistant", [("text", "A circle.")]), *turns[3:]]
    first, second = (answer(model, t, exact=False, **SHORT) for t in (turns, changed))
    assert len(first.prompt_ids) == len(second.prompt_ids) and first.said != second.said


def test_silent_and_sounding_videos(model: LoadedModel) -> None:
    """In one prompt, which the reference cannot take; what comes first is as if it were alone."""
    silent, sounding = ("video", 4, 56, 84, None), ("video", 4, 56, 84, 1.5)
    for first, second in ((silent, sounding), (sounding, silent)):
        alone = answer(model, [SYSTEM, ("user", [first])], **SHORT)
        both = answer(model, [SYSTEM, ("user", [first, second])], **SHORT)
        counts = [both.prompt_ids.count(i) for i in model.config.thinker_config.media_token_ids]
        assert counts == [37, 0, 2 * 12]
        after = len("\nassistant\n") + 2  # tokens behind the media: one each, and two markers
        shared = len(alone.prompt_ids) - after - 1
        assert both.prompt_ids[:shared] == alone.prompt_ids[:shared]
        torch.testing.assert_close(
            both.hidden[:shared], alone.hidden[:shared], rtol=1e-4, atol=1e-4
        )
        assert len(both.codec_ids) == 8


@pytest.mark.parametrize("exact", [False, True])
def test_all_in_bfloat16(tiny_checkpoint: Callable[[str], Path], exact: bool) -> None:
    """Token2Wav, too, which stays in float32 unless told otherwise."""
    narrow = thinktalk.load(
        tiny_checkpoint("7b"), dtype=torch.bfloat16, token2wav_dtype=torch.bfloat16
    )
    run = answer(narrow, CASES["image"], exact=exact, **SHORT)
    assert run.wave.shape == (8 * SAMPLES_PER_ID,) and run.wave.dtype == torch.float32
    assert run.wave.isfinite().all() and run.wave.std() > 0.01


def test_sound_of_videos_can_be_left_out(model: LoadedModel) -> None:
    heard = answer(model, CASES["sounding"], **SHORT)
    unheard = answer(model, CASES["sounding"], audio_in_video=False, **SHORT)
    silent = answer(model, CASES["video"], **SHORT)
    assert unheard.prompt_ids == silent.prompt_ids != heard.prompt_ids
    assert unheard.said == silent.said != heard.said


# ---- positions


def test_positions_can_be_altered(model: LoadedModel) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def same(ids: Tensor, positions: Tensor) -> Tensor:
        seen.append((ids, positions.clone()))
        return positions

    def doubled(ids: Tensor, positions: Tensor) -> Tensor:
        return positions * 2

    plain = thinktalk.generate(model, [QUESTION], **SHORT)
    kept = thinktalk.generate(model, [QUESTION], positions=same, **SHORT)
    other = thinktalk.generate(model, [QUESTION], positions=doubled, **SHORT)
    ((ids, positions),) = seen
    assert ids.ndim == 1 and positions.shape == (3, len(ids))
    assert kept.text_ids == plain.text_ids and kept.codec_ids == plain.codec_ids
    assert other.text_ids != plain.text_ids
