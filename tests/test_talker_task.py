"""The Talker on rows: what it says after training, in whose voice, and what else changes or not."""

from pathlib import Path

import numpy as np
import pytest
import small_talk
import torch
import torch.nn.functional as F
from tiny import VOICE_IDS

import thinktalk
from thinktalk.generate import Thought, hand_over, load_tokenizer, talk
from thinktalk.media.prompt import Prompt
from thinktalk.options import GREEDY
from thinktalk.parallel import join
from thinktalk.train import speech_courses, speech_stages
from thinktalk.train.checkpoint import best_weights
from thinktalk.train.examples import IGNORED, maker_for
from thinktalk.train.job import Job
from thinktalk.train.packing import collate
from thinktalk.train.shards import open_source
from thinktalk.train.speaking import CodecClasses, misheard, spread_unused, think
from thinktalk.train.talker import TalkerTask
from thinktalk.train.tuning import train_on
from thinktalk.weights import LoadedModel, load

QUESTION, ANSWER = "hi", "hey you"
CODES = {"Chelsie": [5, 900, 17, 17, 402, 8], "Ethan": [611, 2, 2, 77, 350, 12, 64, 1]}
QUICK = {"steps": 160, "learning_rate": 4e-3, "warmup_steps": 5, "ema": 0.0, "bfloat16": False}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_talk.build(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text in two voices, whose codes have nothing in common."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    return small_talk.write_rows(
        path, [small_talk.coded(QUESTION, ANSWER, codes, voice) for voice, codes in CODES.items()]
    )


@pytest.fixture(scope="module")
def trained(base: LoadedModel, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run")
    assert train_on("talker", model=base.folder, data=[rows], out=out, changes=QUICK)
    return out


def batch_of(model: LoadedModel, rows: Path, *, packed: bool = True) -> dict:
    maker, source = maker_for(model), open_source(rows)
    examples = [example for n in range(len(source)) for example in maker.make(source.row(n))]
    return collate(examples, samples=range(len(examples)), pad_id=256, packed=packed)


def prompt_of(model: LoadedModel, rows: Path) -> Prompt:
    example = maker_for(model).make(open_source(rows).row(0))[0]
    return Prompt(example.ids[: example.spoken[0].start])


def said(model: LoadedModel, rows: Path, voice: str) -> list[int]:
    """The codes of the answer, word by word as generation makes them."""
    with torch.inference_mode():
        thought = Thought(model.omni, prompt_of(model, rows), max_text_tokens=32)
        for token in load_tokenizer(model.folder).encode(ANSWER):
            thought.feed(torch.tensor([token]))
        return list(
            talk(thought, voice=model.voices[voice], sampling=GREEDY, seed=0, max_codec_ids=30)
        )


def test_every_voice_says_its_own_codes_of_the_same_text(trained: Path, rows: Path) -> None:
    model = load(trained / "model")
    assert {voice: said(model, rows, voice) for voice in CODES} == CODES


def test_the_thinker_stays_as_it_was_but_for_the_voices_tokens(
    base: LoadedModel, trained: Path
) -> None:
    before, after = (
        base.omni.thinker.state_dict(),
        load(trained / "model").omni.thinker.state_dict(),
    )
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["model.embed_tokens.weight"]
    moved = (before[changed[0]] != after[changed[0]]).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(VOICE_IDS.values())


def test_names_of_the_state_are_those_of_earlier_runs(trained: Path, base: LoadedModel) -> None:
    names = {name for name in best_weights(trained / "talker") if name.startswith("talker.")}
    assert names == {f"talker.{name}" for name in base.omni.talker.state_dict()}


def test_the_codec_loss_is_that_of_generation(base: LoadedModel, rows: Path) -> None:
    """Against an independent computation: one reply after the other, by the code that generates."""
    model = load(base.folder)
    omni, talker = model.omni, model.omni.talker
    spread_unused(talker, num_codes=1000)
    task = TalkerTask(talker, omni.thinker, num_codes=1000)
    task.module.eval()
    losses = []
    with torch.no_grad():
        for voice, codes in CODES.items():
            thought = Thought(omni, prompt_of(model, rows), max_text_tokens=32)
            for token in load_tokenizer(model.folder).encode(ANSWER):
                thought.feed(torch.tensor([token]))
            tracks, positions = hand_over(thought, voice=model.voices[voice])
            end, pad = (omni.thinker.embed(torch.tensor([token])) for token in (282, 280))
            beside = [*thought.reply_rows[1:], end, *[pad] * 30]
            more = [talker.embed_codec(torch.tensor([c])) + beside[k] for k, c in enumerate(codes)]
            after = positions[:, -1:] + 1 + torch.arange(len(codes))
            hidden = talker(
                torch.cat((tracks, *more))[None],
                positions=torch.cat((positions, after), dim=1)[:, None],
            )
            logits = talker.logits(hidden[0, -len(codes) - 1 :])
            losses.append(F.cross_entropy(logits, torch.tensor([*codes, 8294]), reduction="sum"))
        wanted = sum(losses) / (sum(map(len, CODES.values())) + 2)
        for packed in (True, False):
            codec = task.loss(batch_of(model, rows, packed=packed))[1]["codec"]
            assert codec.item() == pytest.approx(float(wanted), rel=1e-4)


def test_a_talker_that_speaks_needs_no_untrained_head(base: LoadedModel, rows: Path) -> None:
    """Without the loss that follows the text what is left is that of the codes."""
    omni = load(base.folder).omni
    omni.thinker.requires_grad_(False)
    batch = batch_of(base, rows)
    whole = TalkerTask(omni.talker, omni.thinker, num_codes=1000)
    plain = TalkerTask(omni.talker, omni.thinker, num_codes=1000, spelling=0.0)
    plain.module.eval()
    whole.module.eval()
    loss, figures = plain.loss(batch)
    assert figures.keys() == {"codec", "right"} and plain.speller is None
    assert loss.item() == pytest.approx(whole.loss(batch)[1]["codec"].item(), rel=1e-6)


def test_joint_training_reaches_the_thinker_through_its_states(
    base: LoadedModel, rows: Path
) -> None:
    omni = load(base.folder).omni
    batch = batch_of(base, rows)
    frozen = TalkerTask(omni.talker, omni.thinker.requires_grad_(False), num_codes=1000)
    frozen.loss(batch)[0].backward()
    assert all(weight.grad is None for weight in omni.thinker.parameters())
    omni.thinker.requires_grad_(True)
    joint = TalkerTask(omni.talker, omni.thinker, num_codes=1000, joint=True, text_weight=0.0)
    joint.loss(batch)[0].backward()
    weight = omni.thinker.get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert weight.grad is not None and weight.grad.abs().max() > 0
    assert omni.thinker.lm_head.weight.grad is None or not omni.thinker.lm_head.weight.grad.any()


def test_joint_training_ends_in_a_model_that_answers_and_speaks(
    base: LoadedModel, rows: Path, tmp_path: Path
) -> None:
    changes = QUICK | {"joint": "true", "batch_size": 2, "learning_rate": 2e-3}
    assert train_on("talker", model=base.folder, data=[rows], out=tmp_path, changes=changes)
    model = load(tmp_path / "model")
    for voice, codes in CODES.items():
        answer = thinktalk.generate(model, [QUESTION], voice=voice, speech=GREEDY, max_codec_ids=30)
        assert (answer.text, answer.codec_ids) == (ANSWER, codes)
        assert len(answer.audio) == 480 * len(codes)


def test_a_batch_in_which_nobody_speaks_runs_the_same_networks(base: LoadedModel) -> None:
    omni = load(base.folder).omni
    task = TalkerTask(omni.talker, omni.thinker, num_codes=1000, voices=VOICE_IDS.values())
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    loss, _ = task.loss(
        collate(
            maker_for(base).make(open_source(rows).row(0)), samples=[0], pad_id=256, packed=True
        )
    )
    loss.backward()
    assert loss.item() == 0
    assert all(weight.grad is not None for weight in task.module.parameters() if weight.ndim > 1)


def test_what_it_mishears_are_codes_and_mostly_neighbours() -> None:
    torch.manual_seed(0)
    ids = torch.randint(1000, (40, 500))
    wrong = misheard(ids, num_codes=1000, levels=(8, 5, 5, 5))
    assert wrong.min() >= 0 and wrong.max() < 1000
    assert (wrong != ids).float().mean().item() == pytest.approx(0.06 + 0.12 * 0.8, abs=0.02)
    radix = np.array([1, 8, 40, 200])
    digits = [x.numpy()[..., None] // radix % np.array([8, 5, 5, 5]) for x in (wrong, ids)]
    steps = np.abs(digits[0] - digits[1])
    near = (steps.sum(-1) == 1)[(wrong != ids).numpy()].mean()
    assert near > 0.55


def test_classes_hold_all_codes_ends_and_the_rest(base: LoadedModel) -> None:
    classes = CodecClasses(base.omni.talker, num_codes=1000)
    assert classes.sizes.sum() == 8448
    labels = classes.of(torch.tensor([3, 999, 8294, IGNORED]))
    assert classes.ids[labels[:3]].tolist() == [3, 999, 8294] and labels[3] == IGNORED


def test_every_speaker_is_drawn_equally_often(base: LoadedModel, tmp_path: Path) -> None:
    """talker-voice: nine rows of one speaker and one of another, and rows where nobody speaks."""
    rows = [small_talk.coded("hi", f"text {n}", [n], "Chelsie") for n in range(9)]
    rows += [small_talk.coded("hi", "text 9", [900], "Ethan")]
    silent = [{"messages": [{"role": "assistant", "content": f"text {n}"}]} for n in range(5)]
    sources = [open_source(some) for some in (silent, [*silent, *rows])]
    job = Job(load(base.folder), str(base.folder), sources, join(), tmp_path)
    stage = speech_stages.talker_voice()
    _, loader = speech_courses.prepare_talker(job, stage)
    drawn = loader.dataset.epoch(0, seed=0)  # pyright: ignore[reportAttributeAccessIssue]
    voices = [loader.dataset.examples(int(row))[0].spoken[0].voice for row in drawn]  # pyright: ignore
    assert sorted(voices.count(token) for token in VOICE_IDS.values()) == [5, 5]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (small_talk.coded("hi", "hey", [3], "Nobody"), "the speaker 'Nobody' is unknown"),
        (small_talk.coded("hi", "hey", [3, 1000], "Ethan"), "codes hold 1000.* are 0 to 999"),
        (
            {"messages": [{"role": "assistant", "content": "hey"}], "speech": "no.wav",
             "speaker": "Ethan"},
            "no.wav does not exist",
        ),
        ({"messages": [{"role": "assistant", "content": "hey"}]}, "add speech or codes"),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_said_are_told(
    base: LoadedModel, tmp_path: Path, row: dict, reason: str
) -> None:
    data = small_talk.write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=f"(?s)rows.jsonl.*{reason}"):
        train_on("talker", model=base.folder, data=[data], out=tmp_path / "run", changes=QUICK)


@pytest.mark.parametrize("packed", [True, False])
def test_a_share_of_the_samples_hears_words_without_states(
    base: LoadedModel, rows: Path, packed: bool
) -> None:
    batch, thinker = batch_of(base, rows, packed=packed), base.omni.thinker
    with torch.no_grad():
        whole, none = think(thinker, batch), think(thinker, batch, deaf=1.0)
        torch.manual_seed(5)
        some = think(thinker, batch, deaf=0.5)
    assert torch.equal(whole.hidden, some.hidden)
    real = batch["segments"] >= 0
    words = thinker.embed(batch["ids"])
    torch.testing.assert_close(none.rows[real], words[real])
    torch.testing.assert_close(whole.rows[real], (words + whole.hidden)[real])
    for sample in batch["segments"][real].unique():
        place = batch["segments"] == sample
        heard = [torch.equal(some.rows[place], rows.rows[place]) for rows in (whole, none)]
        assert sum(heard) == 1  # a sample has all of its states or none
