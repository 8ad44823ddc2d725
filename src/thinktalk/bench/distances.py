"""How far cheaper ways to a reply's mel lead from the exact one: lengths in mel, no times.

Exact is the reference's way: the whole utterance at once, Runge-Kutta, 36 evaluations. All ways
begin at the same noise, but for one that tells how far apart equally good results are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thinktalk.config import Solver
from thinktalk.generate import generate
from thinktalk.model.code2wav import frame_noise
from thinktalk.weights import LoadedModel

# what a model with weights says for this, and how much a random one "says"
REQUESTS = (
    "say: the green star is happy.",
    "count from two to nine.",
    "say: the old dog and the young cat are hot.",
    "what is the capital of france?",
)
RANDOM_IDS = 120
DEFAULT = "windowed, the checkpoint's solver: the default"


@dataclass(frozen=True)
class Distance:
    """mean: of the absolute difference of the log-mel; relative: root mean square of it, over the
    standard deviation of the exact mel; largest: of all."""

    what: str
    mean: float
    relative: float
    largest: float


@torch.inference_mode()
def measure_distances(model: LoadedModel, *, spoken: bool, seed: int) -> list[Distance]:
    """spoken: codec ids are those of the model's own replies; else they are random."""
    dit = model.omni.token2wav.code2wav_dit_model
    stored = dit.proj_out.weight.dtype
    dit.float()
    replies = _replies(model, spoken=spoken, seed=seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for ids in replies:
        for what, pair in _pairs(model, ids, seed=seed).items():
            found.setdefault(what, []).append(pair)
    dit.bfloat16()  # last, for it rounds the weights
    found["the default in bfloat16, against itself in float32"] = [
        (_windowed(model, ids, None, seed=seed), live)
        for ids, (live, _) in zip(replies, found[DEFAULT], strict=True)
    ]
    dit.to(stored)
    return [_distance(what, pairs) for what, pairs in found.items()]


def _pairs(model: LoadedModel, ids: Tensor, *, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Codec ids [1,n] -> two mels [1,F,M] for every comparison: what is measured, and by what."""
    exact = _whole(model, ids, "rk4", seed=seed)
    return {
        "exact, other noise": (_whole(model, ids, "rk4", seed=seed + 1), exact),
        "windowed, Runge-Kutta, 36 evaluations": (_windowed(model, ids, "rk4", seed=seed), exact),
        "whole, midpoint, 6 evaluations": (_whole(model, ids, "midpoint", seed=seed), exact),
        "whole, Euler, 9 evaluations": (_whole(model, ids, "euler", seed=seed), exact),
        DEFAULT: (_windowed(model, ids, None, seed=seed), exact),
    }


def _whole(model: LoadedModel, ids: Tensor, solver: Solver, *, seed: int) -> Tensor:
    """The mel [1,F,M], all frames at once."""
    dit = model.omni.token2wav.code2wav_dit_model
    frames = ids.shape[1] * dit.config.repeats
    noise = frame_noise(seed, 0, frames, dit=dit)[None].to(ids.device)
    cond, ref_mel = _speaker(model)
    return dit.sample(ids, cond=cond, ref_mel=ref_mel, noise=noise, schedule=dit.schedule(solver))


def _windowed(model: LoadedModel, ids: Tensor, solver: Solver | None, *, seed: int) -> Tensor:
    """The mel [1,F,M] in float32, window by window; by default with the checkpoint's solver."""
    token2wav = model.omni.token2wav
    schedule = None if solver is None else token2wav.code2wav_dit_model.schedule(solver)
    cond, ref_mel = _speaker(model)
    mel = token2wav.windowed_mel(ids, cond=cond, ref_mel=ref_mel, seed=seed, schedule=schedule)
    return mel.float()


def _speaker(model: LoadedModel) -> tuple[Tensor, Tensor]:
    """cond and ref_mel of the first voice, in the DiT's dtype."""
    like = model.omni.token2wav.code2wav_dit_model.proj_out.weight
    voice = next(iter(model.voices.values()))
    return voice.cond.to(like), voice.ref_mel.to(like)


def _replies(model: LoadedModel, *, spoken: bool, seed: int) -> list[Tensor]:
    """Codec ids [1,n] of some utterances."""
    device = model.omni.token2wav.code2wav_dit_model.proj_out.weight.device
    if spoken:
        answers = [generate(model, [request], seed=seed) for request in REQUESTS]
        return [torch.tensor([list(a.codec_ids)], device=device) for a in answers if a.codec_ids]
    generator = torch.Generator().manual_seed(seed)
    count = model.config.token2wav_config.dit_config.num_embeds
    return [torch.randint(count, (1, RANDOM_IDS), generator=generator).to(device)]


def _distance(what: str, pairs: list[tuple[Tensor, Tensor]]) -> Distance:
    """Over all frames of all utterances alike."""
    ours, exact = (torch.cat([pair[k][0] for pair in pairs]) for k in (0, 1))
    difference = (ours - exact).abs()
    relative = difference.square().mean().sqrt() / exact.std()
    return Distance(what, difference.mean().item(), relative.item(), difference.max().item())
