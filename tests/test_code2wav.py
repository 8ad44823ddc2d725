"""Exact synthesis equals the reference; windowed synthesis equals itself however ids arrive."""

from collections.abc import Callable, Iterable
from dataclasses import fields, replace

import pytest
import torch
from recorded_voice import (
    COND,
    CONFIG,
    IDS,
    NOISE,
    REF_MEL,
    SEED,
    SEEDED_IDS,
    TENSORS,
    recorded_network,
)
from torch import Tensor

from thinktalk.config import Token2WavConfig
from thinktalk.model.code2wav import Token2Wav, VoiceState, frame_noise, group_blocks

RECORDED = recorded_network()


def light_network() -> Token2Wav:
    """The recorded DiT with a vocoder of few convolutions."""
    torch.manual_seed(0)
    vocoder = replace(
        CONFIG.bigvgan_config, resblock_kernel_sizes=(7,), resblock_dilation_sizes=((5,),)
    )
    network = Token2Wav(replace(CONFIG, bigvgan_config=vocoder)).eval().requires_grad_(False)
    network.code2wav_dit_model.load_state_dict(RECORDED.code2wav_dit_model.state_dict())
    return network


NETWORK = light_network()
DIT = NETWORK.code2wav_dit_model
FULL_CONTEXT = NETWORK.code2wav_bigvgan_model.context_frames
SCHEDULE = DIT.schedule("euler")
VOICE = {"cond": COND[:1], "ref_mel": REF_MEL[:1]}
LONG = torch.cat((IDS[0], IDS[1]))[None]  # 58 ids: blocks 0, 1, 2 with 3, and a short one


def test_reference() -> None:
    wave = RECORDED.synthesize_exact(IDS[:1], **VOICE, noise=NOISE[:1])
    expected = TENSORS["wave"]
    assert wave.shape == (1, 29 * RECORDED.samples_per_id) == (1, len(expected))
    assert (wave[0] - expected).abs().max() < 1e-4 * expected.abs().max()


def test_noise_is_the_references_by_default() -> None:
    wave = NETWORK.synthesize_exact(IDS[:1, :SEEDED_IDS], **VOICE, seed=SEED)
    expected = NETWORK.vocode(TENSORS["seeded_mel"].mT)
    assert (wave - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("solver", ("exact", "windowed"))
def test_shortest_utterances(solver: str) -> None:
    synthesize = NETWORK.synthesize_exact if solver == "exact" else NETWORK.synthesize
    assert synthesize(IDS[:1, :0], **VOICE).shape == (1, 0)
    one = synthesize(IDS[:1, :1], **VOICE)
    assert one.shape == (1, NETWORK.samples_per_id) and one.isfinite().all() and one.std() > 0


def test_refusals() -> None:
    rows = CONFIG.dit_config.num_embeds
    for bad in (-1, rows):
        with pytest.raises(ValueError, match=f"0..{rows - 1}"):
            NETWORK.synthesize(torch.tensor([[3, bad]]), **VOICE)
    config = replace(DIT.config, max_position_embeddings=50)
    short = Token2Wav(replace(NETWORK.config, dit_config=config))
    with pytest.raises(ValueError, match="windowed"):
        short.synthesize_exact(IDS[:1], **VOICE)


# ---- windowed: one definition, many arrivals


def live(
    arrivals: Iterable[int],
    ids: Tensor = LONG,
    *,
    context_frames: int | None = None,
    network: Token2Wav = NETWORK,
) -> list[Tensor]:
    """ids [1,n] arriving in portions -> the samples [k] of every step."""
    state = network.new_state(1, SCHEDULE, context_frames=context_frames)
    state.reset(0, voice=network.voice(**VOICE, schedule=SCHEDULE)[0], seed=0)
    waves, arrived, left = [], 0, ids.shape[1]
    for portion in (*arrivals, 0):
        arrived, left = arrived + portion, left - portion
        while count := network.block_due(arrived, blocks=int(state.blocks), finished=left == 0):
            start = int(state.blocks) * 12
            window = ids[:, start : start + count]
            assert start + count <= arrived
            waves += network.step(state, window, counts=torch.tensor([count]), schedule=SCHEDULE)
    assert left == 0
    return waves


@pytest.mark.parametrize("length", (1, 11, 12, 13, 23, 24, 25, 36, 47, 48, 49, 58, 98))
def test_arrival_does_not_matter(length: int) -> None:
    """Bit for bit; and up to rounding the same as the whole utterance at once."""
    ids = torch.cat((LONG, LONG.flip(1)), dim=1)[:, :length]
    once = torch.cat(live([length], ids, context_frames=FULL_CONTEXT))
    assert once.shape == (length * NETWORK.samples_per_id,)
    for portion in (1, 5, 12, 37):
        full, rest = divmod(length, portion)
        arrivals = [portion] * full + [rest] * (rest > 0)
        waves = live(arrivals, ids, context_frames=FULL_CONTEXT)
        assert torch.equal(torch.cat(waves), once)
    whole = NETWORK.synthesize(ids, **VOICE)
    assert (once - whole[0]).abs().max() < 1e-6


def test_groups_begin_small_and_grow() -> None:
    assert [group_blocks(block) for block in (0, 1, 2, 4, 8, 400)] == [1, 1, 2, 4, 4, 4]
    with pytest.raises(AssertionError, match="begins at 3"):
        group_blocks(3)
    for block, ids in ((0, 18), (1, 36), (2, 60), (4, 108), (8, 156)):
        due = NETWORK.block_due(ids, blocks=block, finished=False)
        assert due == ids - 12 * block  # the group and a block more, behind the first half of one
        assert NETWORK.block_due(ids - 1, blocks=block, finished=False) == 0
        assert NETWORK.block_due(ids - 1, blocks=block, finished=True) == due - 1
    assert NETWORK.block_due(59, blocks=5, finished=True) == 0


def test_samples_come_as_early_as_the_context_allows() -> None:
    frames = [len(samples) // 240 for samples in live([58], context_frames=20)]
    assert frames == [4, 24, 48, 20 + 20]  # the last block has 10 ids


def test_practical_context(record_property: Callable[[str, object], None]) -> None:
    """Less context than the vocoder's reach, for less delay: the error is stated, not hidden."""
    context, reach = RECORDED.practical_context, RECORDED.code2wav_bigvgan_model.context_frames
    assert (context, reach) == (17, 29)
    whole = RECORDED.synthesize(LONG, **VOICE)
    errors = []
    for frames in (context, context // 2):
        wave = torch.cat(live([58], context_frames=frames, network=RECORDED))
        errors.append(float((wave - whole).abs().max() / whole.abs().max()))
    record_property("relative errors at the practical context, at half of it", errors)
    assert 0 < errors[0] < 2e-5 < errors[1]


def test_practical_context_of_the_published_networks() -> None:
    with torch.device("meta"):
        network = Token2Wav(Token2WavConfig())
    assert network.practical_context == 20


@pytest.mark.parametrize("look_back", (DIT.config.look_backward_layers, ()))
def test_the_past_is_exact(look_back: tuple[int, ...]) -> None:
    """Without a look-ahead layer nothing is cut off: windowed and full sequence are the same."""
    config = replace(DIT.config, look_ahead_layers=(), look_backward_layers=look_back)
    network = Token2Wav(replace(NETWORK.config, dit_config=config)).eval().requires_grad_(False)
    network.load_state_dict(NETWORK.state_dict())
    for solver in ("euler", "rk4"):
        schedule = network.code2wav_dit_model.schedule(solver, num_points=6)
        windowed = network.windowed_mel(LONG, **VOICE, seed=3, schedule=schedule)
        noise = frame_noise(3, 0, 116, dit=DIT)[None]
        full = network.code2wav_dit_model.sample(LONG, **VOICE, noise=noise, schedule=schedule)
        assert (windowed - full).abs().max() < 1e-5 * full.abs().max()


def test_distance_to_the_exact_synthesis(record_property: Callable[[str, object], None]) -> None:
    """What the cut after one block of look-ahead costs, with the same noise and solver."""
    full = DIT.sample(LONG, **VOICE, noise=frame_noise(0, 0, 116, dit=DIT)[None], schedule=SCHEDULE)
    difference = NETWORK.windowed_mel(LONG, **VOICE) - full
    distance = float(difference.square().mean().sqrt() / full.std())
    record_property("rms distance of the windowed mel, relative to its deviation", distance)
    assert 0 < distance < 0.02
    last_two = difference[:, 3 * 24 :]  # of the last block and the one before nothing is cut off
    assert last_two.abs().max() < 0.5 * difference.abs().max()


def test_a_bfloat16_dit_under_a_float32_vocoder() -> None:
    """On a CPU the DiT gains most from bfloat16; noise, mel and samples stay float32."""
    network = light_network()
    network.code2wav_dit_model.to(torch.bfloat16)
    mel, expected = network.windowed_mel(IDS[:1], **VOICE), NETWORK.windowed_mel(IDS[:1], **VOICE)
    assert mel.dtype == network.synthesize(IDS[:1], **VOICE).dtype == torch.float32
    assert 0 < (mel - expected).square().mean().sqrt() < 0.03 * expected.std()


# ---- rows


def test_rows_in_different_phases_do_not_know_of_each_other() -> None:
    """Utterances that begin at different times, in one batch, are as if alone."""
    voices = NETWORK.voice(COND, REF_MEL, SCHEDULE)
    state = NETWORK.new_state(2, SCHEDULE, context_frames=FULL_CONTEXT)
    state.reset(0, voice=voices[0], seed=1)
    waves: list[list[Tensor]] = [[], []]
    for turn, rows in enumerate(([0], [0], [0, 1], [1, 0], [1])):
        if turn == 2:
            state.reset(1, voice=voices[1], seed=2)
        for row, wave in zip(rows, step_rows(state, rows), strict=True):
            waves[row].append(wave)
    for row, ids in enumerate((LONG, IDS[1:])):
        given = {"cond": COND[row : row + 1], "ref_mel": REF_MEL[row : row + 1]}
        alone, got = NETWORK.synthesize(ids, **given, seed=row + 1)[0], torch.cat(waves[row])
        assert got.shape == alone.shape
        assert (got - alone).abs().max() < 1e-6


def step_rows(state: VoiceState, rows: list[int]) -> list[Tensor]:
    """Renders what comes next of LONG in row 0, of IDS[1] in row 1."""
    part = state.rows(rows)
    ids, counts = torch.zeros(len(rows), 60, dtype=torch.int64), torch.zeros(len(rows)).long()
    for i, row in enumerate(rows):
        utterance, blocks = (LONG[0], IDS[1])[row], int(part.blocks[i])
        counts[i] = NETWORK.block_due(len(utterance), blocks=blocks, finished=True)
        ids[i, : counts[i]] = utterance[12 * blocks :][: counts[i]]
    waves = NETWORK.step(part, ids, counts=counts, schedule=SCHEDULE)
    state.write(rows, part)
    return waves


def test_reset_of_a_row_leaves_the_others_bit_identical() -> None:
    voices = NETWORK.voice(COND, REF_MEL, SCHEDULE)
    state = NETWORK.new_state(3, SCHEDULE)
    for row in range(3):
        state.reset(row, voice=voices[row % 2], seed=row)
    ids = torch.stack([LONG[0, 5 * row : 5 * row + 24] for row in range(3)])
    counts = torch.tensor([24, 24, 24])
    NETWORK.step(state, ids, counts=counts, schedule=SCHEDULE)
    fork = state.rows([0, 1, 2])
    fork.reset(1, voice=voices[0], seed=9)
    for field in fields(VoiceState):
        kept, reset = getattr(state, field.name), getattr(fork, field.name)
        assert torch.equal(kept[[0, 2]], reset[[0, 2]]), field.name
    old = NETWORK.step(state, ids, counts=counts, schedule=SCHEDULE)
    new = NETWORK.step(fork, ids, counts=counts, schedule=SCHEDULE)
    assert torch.equal(old[0], new[0]) and torch.equal(old[2], new[2])
    fresh = NETWORK.new_state(1, SCHEDULE)
    fresh.reset(0, voice=voices[0], seed=9)
    (alone,) = NETWORK.step(fresh, ids[1:2], counts=counts[1:2], schedule=SCHEDULE)
    assert torch.allclose(new[1], alone, atol=1e-6)  # nothing is left of the row before


def test_noise_is_keyed_by_seed_and_frame() -> None:
    whole = frame_noise(7, 0, 100, dit=DIT)
    for start, stop in ((0, 24), (23, 25), (24, 48), (50, 51), (30, 100)):
        assert torch.equal(frame_noise(7, start, stop, dit=DIT), whole[start:stop])
    assert abs(whole.mean()) < 0.05 and abs(whole.std() - 1) < 0.05
    assert not torch.equal(frame_noise(8, 0, 24, dit=DIT), whole[:24])
    assert not torch.equal(whole[:24], whole[24:48])


def test_another_seed_is_another_sound() -> None:
    first, again, other = (NETWORK.synthesize(IDS[:1], **VOICE, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert (first - other).abs().max() > 0.01 * first.abs().max()
