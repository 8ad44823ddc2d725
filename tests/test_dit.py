"""The DiT equals the reference, sees the blocks it may see, and trains on padded batches."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from recorded_voice import (
    COND,
    CONFIG,
    IDS,
    NOISE,
    REF_MEL,
    TENSORS,
    TIME,
    assert_within_their_error,
    recorded_network,
)
from torch import Tensor

import thinktalk
from thinktalk.config import Solver
from thinktalk.model.dit import DiT

DIT_CONFIG = CONFIG.dit_config
DIT = recorded_network().code2wav_dit_model
BLOCK = DIT_CONFIG.block_size


def velocity(dit: DiT, mel: Tensor, ids: Tensor, **options: Any) -> Tensor:
    """At the recorded time, with the recorded voices; in the network's dtype."""
    rows, dtype = slice(len(mel)), dit.proj_out.weight.dtype
    return dit(
        mel.to(dtype),
        times=torch.full((len(mel),), TIME),
        codes=ids,
        cond=COND[rows].to(dtype),
        ref_mel=REF_MEL[rows].to(dtype),
        **options,
    )


def both_branches(dit: DiT) -> Tensor:
    """As the reference stacks them: all rows with codes and voice, then all without."""
    dropped = torch.ones(len(IDS), dtype=torch.bool)
    return torch.cat((velocity(dit, NOISE, IDS), velocity(dit, NOISE, IDS, drop=dropped)))


def test_reference_float32() -> None:
    ours, expected = both_branches(DIT), TENSORS["velocity.float32"]
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_reference_bfloat16() -> None:
    ours = both_branches(recorded_network(torch.bfloat16).code2wav_dit_model)
    assert ours.dtype == torch.bfloat16
    assert_within_their_error(ours, "velocity")


def test_reference_sampler() -> None:
    """36 guided evaluations; one row without its guidance is another sound."""
    sample = sampler(DIT)
    mel, expected = sample(DIT.schedule("rk4")), TENSORS["mel"].mT
    assert mel.shape == expected.shape
    assert (mel - expected).abs().max() < 1e-5 * expected.abs().max()
    unguided = sample(DIT.schedule("rk4", guidance=0.0))
    assert (unguided - expected).abs().max() > 1e-2 * expected.abs().max()


def sampler(dit: DiT) -> Callable[..., Tensor]:
    def sample(schedule: Any, rows: slice = slice(None), **options: Any) -> Tensor:
        given = {"cond": COND[rows], "ref_mel": REF_MEL[rows], "noise": NOISE[rows]}
        return dit.sample(IDS[rows], schedule=schedule, **given | options)

    return sample


def test_euler_takes_steps_along_the_guided_velocity() -> None:
    schedule = DIT.schedule("euler", num_points=4, guidance=0.7)
    times = [0.0, 1 - 3**0.5 / 2, 0.5, 1.0]  # thirds, moved towards zero by 1 - cos(pi t / 2)
    assert schedule.steps == pytest.approx([b - a for a, b in pairwise(times)])
    y = NOISE
    for time, step in zip(times, schedule.steps, strict=False):
        options = {"times": torch.full((2,), time), "codes": IDS, "cond": COND, "ref_mel": REF_MEL}
        guided = DIT(y, **options)
        free = DIT(y, **options, drop=torch.tensor([True, True]))
        y = y + step * (guided + 0.7 * (guided - free))
    mel = sampler(DIT)(schedule)
    assert (mel - y).abs().max() < 1e-5 * y.abs().max()


def test_distance_of_the_solvers_on_spark(record_property: Callable[[str, object], None]) -> None:
    """To the 36 evaluations of the reference's, rms relative to the mel's deviation.

    Only trained weights tell: the velocity of random ones turns too quickly for any solver.
    """
    model = thinktalk.load("spark")
    dit, voice = model.omni.token2wav.code2wav_dit_model, next(iter(model.voices.values()))
    ids = torch.randint(dit.config.num_embeds, (1, 24), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 48, 80, generator=torch.Generator().manual_seed(0))
    given = {"cond": voice.cond, "ref_mel": voice.ref_mel, "noise": noise}
    exact = dit.sample(ids, **given, schedule=dit.schedule("rk4"))

    def distance(solver: Solver) -> float:
        difference = dit.sample(ids, **given, schedule=dit.schedule(solver)) - exact
        return float(difference.square().mean().sqrt() / exact.std())

    euler, midpoint = distance("euler"), distance("midpoint")
    dit.to(torch.bfloat16)  # noise, state and guidance stay float32
    rounded = distance("rk4")
    record_property("euler, midpoint, bfloat16", (euler, midpoint, rounded))
    assert 0 < rounded < 0.01 < midpoint < euler < 0.06
    evaluations = [len(dit.schedule(s).modulations) for s in ("euler", "midpoint", "rk4")]
    assert evaluations == [9, 6, 36]


def test_one_voice_serves_all_rows() -> None:
    schedule = DIT.schedule("euler", num_points=3)
    shared = sampler(DIT)(schedule, cond=COND[:1], ref_mel=REF_MEL[:1])
    alone = sampler(DIT)(schedule, slice(1))
    assert torch.allclose(shared[:1], alone, atol=1e-5)


def test_attention_in_blocks_equals_dense_attention_under_a_mask() -> None:
    assert torch.allclose(velocity(DIT, NOISE, IDS), dense_velocity(DIT, NOISE, IDS), atol=1e-5)


def dense_velocity(dit: Any, mel: Tensor, ids: Tensor) -> Tensor:
    """Every frame against every frame, the forbidden ones masked."""
    frames = mel.shape[1]
    index = torch.arange(frames) // BLOCK
    ahead = index[None] - index[:, None]  # [query, key] blocks that the key lies after the query
    context = dit.context(ids, dit.input_embed.voice(COND, REF_MEL))
    x = dit.input_embed.mel(mel) + context
    *modulations, last = (m[:, 0] for m in dit.modulations(torch.full((len(mel),), TIME)))
    for number, (layer, values) in enumerate(zip(dit.transformer_blocks, modulations, strict=True)):
        back = int(number in DIT_CONFIG.look_backward_layers)
        mask = (ahead >= -back) & (ahead <= int(number in DIT_CONFIG.look_ahead_layers))
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = values.chunk(6, dim=-1)
        y = normed(x) * (1 + scale_a) + shift_a
        q, k, v = (
            to(y).unflatten(-1, (-1, DIT_CONFIG.head_dim)).transpose(1, 2)
            for to in (layer.attn.to_q, layer.attn.to_k, layer.attn.to_v)
        )
        q, k = (torch.cat((turned(t[:, :1], dit), t[:, 1:]), dim=1) for t in (q, k))
        scores = (q @ k.mT / DIT_CONFIG.head_dim**0.5).masked_fill(~mask, -torch.inf)
        x = x + gate_a * layer.attn.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + gate_f * layer.ff["ff"](normed(x) * (1 + scale_f) + shift_f)
    scale, shift = last.chunk(2, dim=-1)
    return dit.proj_out(normed(x) * (1 + scale) + shift)


def normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def turned(x: Tensor, dit: DiT) -> Tensor:
    """Pairs (2i, 2i+1) of x [B,1,T,head_dim] as complex numbers, times e^(i angle)."""
    angles = torch.arange(x.shape[-2])[:, None] * dit.rotary_embed.inv_freq
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones(()), angles)).flatten(-2)


def test_an_id_reaches_the_allowed_blocks_and_no_others() -> None:
    """One block ahead by the one look-ahead layer, two back by the two look-back layers."""
    mel, ids = NOISE.repeat(1, 4, 1)[:1, : 8 * BLOCK], IDS.repeat(1, 4)[:1, : 4 * BLOCK]
    before = velocity(DIT, mel, ids).unflatten(1, (-1, BLOCK))
    changed = 4  # this block's last id
    ids = ids.clone()
    ids[0, (changed + 1) * BLOCK // 2 - 1] += 1
    after = velocity(DIT, mel, ids).unflatten(1, (-1, BLOCK))
    moved = [not torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True)]
    assert moved == [changed - 1 <= block <= changed + 2 for block in range(8)]


def test_padding_is_never_seen() -> None:
    """Rows of other lengths in one batch: as if alone, whatever the padding holds."""
    lengths = torch.tensor([13, 29])  # in ids: 26 of 58 frames
    mel, ids = NOISE.clone().requires_grad_(), IDS.clone()
    with torch.no_grad():
        mel[0, 26:] = 100.0
    ids[0, 13:] = 7
    padded = velocity(DIT, mel, ids, lengths=lengths)
    alone = velocity(DIT, NOISE[:1, :26], IDS[:1, :13])
    assert torch.allclose(padded[:1, :26], alone, atol=1e-5)
    assert torch.allclose(padded[1], velocity(DIT, NOISE, IDS)[1], atol=1e-5)
    (gradient,) = torch.autograd.grad(padded[0, :26].square().sum(), mel)
    assert gradient.isfinite().all() and gradient[0, :26].abs().min() > 0
    assert (gradient[0, 26:] == 0).all() and (gradient[1] == 0).all()
    schedule = DIT.schedule("euler", num_points=3)
    sampled = sampler(DIT)(schedule, lengths=lengths)[:1, :26]
    short = {"noise": NOISE[:1, :26], "cond": COND[:1], "ref_mel": REF_MEL[:1]}
    assert torch.allclose(sampled, DIT.sample(IDS[:1, :13], schedule=schedule, **short), atol=1e-5)


def test_dropped_rows_hear_neither_codes_nor_voice() -> None:
    drop = torch.tensor([True, False])
    mixed = velocity(DIT, NOISE, IDS, drop=drop)
    assert torch.allclose(mixed[1], velocity(DIT, NOISE, IDS)[1], atol=1e-5)
    silent = DIT(
        NOISE,
        times=torch.full((2,), TIME),
        codes=torch.zeros_like(IDS),
        cond=torch.zeros_like(COND),
        ref_mel=torch.zeros_like(REF_MEL),
    )
    assert torch.allclose(mixed[0], silent[0], atol=1e-5)
    assert (mixed[0] - velocity(DIT, NOISE, IDS)[0]).abs().max() > 0.1


def test_every_row_has_its_own_time() -> None:
    times = torch.tensor([0.1, 0.8])
    given = {"codes": IDS, "cond": COND, "ref_mel": REF_MEL}
    both = DIT(NOISE, times=times, **given)
    for row in range(2):
        alone = DIT(NOISE, times=times[[row, row]], **given)
        assert torch.allclose(both[row], alone[row], atol=1e-5)
    assert (alone[0] - both[0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_training_reaches_every_weight(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    dit = DiT(DIT_CONFIG)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        options = {"lengths": torch.tensor([29, 20]), "drop": torch.tensor([False, True])}
        loss = velocity(dit, NOISE, IDS, **options).float()[:, :40].square().mean()
    loss.backward()
    for name, parameter in dit.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_stored_frequencies_are_used() -> None:
    """Official checkpoints hold rounded ones; what is loaded counts."""
    dit = recorded_network().code2wav_dit_model
    stored = {"rotary_embed.inv_freq": DIT.rotary_embed.inv_freq * 1.5}
    assert "rotary_embed.inv_freq" in dit.state_dict()
    dit.load_state_dict(stored, strict=False)
    changed = velocity(dit, NOISE, IDS) - velocity(DIT, NOISE, IDS)
    assert changed.abs().max() > 1e-3


def test_a_layer_looks_one_way() -> None:
    with pytest.raises(ValueError, match="not both"):
        DiT(replace(DIT_CONFIG, look_ahead_layers=(0,)))
