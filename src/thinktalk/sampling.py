"""Logits -> the next id: the reference's processors in the reference's order, batched.

Order, as in transformers' generate: repetition penalty, suppression, temperature, top-k, top-p.
No function here waits for the device. Shapes: B rows, V vocabulary.
"""

import hashlib

import torch
from torch import Tensor

from thinktalk.options import Sampling


def choose(
    logits: Tensor,
    sampling: Sampling,
    *,
    seen: Tensor,
    usable: Tensor | None = None,
    uniform: Tensor,
) -> Tensor:
    """logits [B,V] -> ids int64 [B].

    seen: bool [B,V] ids that stand in the row's history (prompt included), for the penalty.
    usable: bool [V] or [B,V] ids that may be chosen at all.
    uniform: float [B] one draw from [0,1) a row, see `draw`; greedy ignores it.
    """
    logits = logits.float()
    if sampling.repetition_penalty != 1.0:
        penalty = sampling.repetition_penalty
        penalised = torch.where(logits < 0, logits * penalty, logits / penalty)
        logits = torch.where(seen, penalised, logits)
    if usable is not None:
        logits = logits.masked_fill(~usable, -torch.inf)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits / sampling.temperature
    ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = _keep_top_p(_keep_top_k(ordered, sampling.top_k), sampling.top_p).softmax(-1)
    # inverse transform: the first id whose cumulative probability passes the draw
    below = probabilities.cumsum(-1) <= uniform[:, None] * probabilities.sum(-1, keepdim=True)
    last = (probabilities > 0).sum(-1, keepdim=True) - 1
    place = below.sum(-1, keepdim=True).minimum(last)
    return ids.gather(-1, place)[:, 0]


def draw(seed: int, stage: str, step: int) -> float:
    """A uniform number in [0,1) that depends on the key alone: not on the device or the batch."""
    digest = hashlib.blake2b(f"{seed}/{stage}/{step}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _keep_top_k(ordered: Tensor, top_k: int) -> Tensor:
    if top_k == 0 or top_k >= ordered.shape[-1]:
        return ordered
    # ties with the k-th value are kept, as the reference does
    return ordered.masked_fill(ordered < ordered[:, top_k - 1 : top_k], -torch.inf)


def _keep_top_p(ordered: Tensor, top_p: float) -> Tensor:
    if top_p == 1.0:
        return ordered
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return ordered.masked_fill(before >= top_p, -torch.inf)
