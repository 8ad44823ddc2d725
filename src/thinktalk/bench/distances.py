"""How far cheaper ways to a reply's mel lead from the exact one: lengths in mel, no times.

Exact is the reference's way: the whole utterance at once, Runge-Kutta, 36 evaluations. All ways
begin at the same noise, but for one that tells how far apart equally good results are.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thinktalk.generate import generate
from thinktalk.model.code2wav import frame_noise
from thinktalk.model.dit import Solver
from thinktalk.weights import LoadedModel

# what a model with weights says for this, and how much a random one "says"
REQUESTS = (
    "say: the green star is happy.",
    "count from two to nine.",
    "say: the old dog and the young cat are hot.",
    "what is the capital of france?",
)
RANDOM_IDS = 120


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
    token2wav = model.omni.token2wav
    dit, voice = token2wav.code2wav_dit_model, next(iter(model.voices.values()))
    stored = dit.proj_out.weight.dtype
    dit.float()
    cond, ref_mel = (part.to(dit.proj_out.weight) for part in (voice.cond, voice.ref_mel))
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}

    for ids in _replies(model, spoken=spoken, seed=seed):
        frames = ids.shape[1] * dit.config.repeats

        def whole(solver: Solver, ids: Tensor = ids, frames: int = frames, key: int = 0) -> Tensor:
            noise = frame_noise(seed + key, 0, frames, dit=dit)[None].to(ids.device)
            schedule = dit.schedule(solver)
            return dit.sample(ids, cond=cond, ref_mel=ref_mel, noise=noise, schedule=schedule)

        def windowed(solver: Solver, ids: Tensor = ids) -> Tensor:
            same = dit.proj_out.weight
            return token2wav.windowed_mel(
                ids,
                cond=cond.to(same),
                ref_mel=ref_mel.to(same),
                seed=seed,
                schedule=dit.schedule(solver),
            ).float()

        exact, live = whole("rk4"), windowed("euler")
        pairs = {
            "exact, other noise": (whole("rk4", key=1), exact),
            "windowed, Runge-Kutta, 36 evaluations": (windowed("rk4"), exact),
            "whole, midpoint, 18 evaluations": (whole("midpoint"), exact),
            "whole, Euler, 9 evaluations": (whole("euler"), exact),
            "windowed, Euler: the default": (live, exact),
        }
        dit.bfloat16()
        pairs["the default in bfloat16, against itself in float32"] = (windowed("euler"), live)
        dit.float()
        for what, pair in pairs.items():
            found.setdefault(what, []).append(pair)
    dit.to(stored)
    return [_distance(what, pairs) for what, pairs in found.items()]


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
