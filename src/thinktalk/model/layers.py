"""Parts shared by several networks: norm, gated feed-forward, rotary positions, attention.

Shapes: B rows, T new tokens, S keys, H heads, K key/value heads, D head size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32 (Zhang & Sennrich 2019), as Qwen2 uses it."""

    def __init__(self, dim: int, *, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, dim: int, inner: int, *, bias: bool = False):
        super().__init__()
        self.gate_proj = nn.Linear(dim, inner, bias=bias)
        self.up_proj = nn.Linear(dim, inner, bias=bias)
        self.down_proj = nn.Linear(inner, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class Packed:
    """In place of a mask: every row holds samples of these lengths, T in all, behind one another,
    and a token sees its own sample up to itself. So the cost is that of the samples, not T * T."""

    lengths: tuple[int, ...]


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | Packed | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention: q [B,H,T,D], k and v [B,K,S,D] -> [B,H,T,D].

    mask: bool, broadcastable to [B,H,T,S], True where a query may look. Fewer key/value heads than
    query heads are shared by equal groups.
    """
    assert q.shape[1] % k.shape[1] == 0, (q.shape, k.shape)
    if isinstance(mask, Packed):
        samples = (part.split(list(mask.lengths), dim=2) for part in (q, k, v))
        return torch.cat([attend(*s, causal=True) for s in zip(*samples, strict=True)], dim=2)
    short = 1 < q.shape[2] <= 32 and k.shape[2] <= 64
    if q.device.type == "cpu" and (q.requires_grad or short):
        # measured: the fused kernel's backward is 2 to 10 times slower than the plain products,
        # and its own products inside are small ones that do not profit from `large_products`
        return _attend_plainly(q, k, v, mask=mask, causal=causal)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=grouped
    )


def _attend_plainly(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, causal: bool
) -> Tensor:
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (k, v))
    scores, scale = q @ k.transpose(-1, -2), q.shape[-1] ** -0.5
    if mask is None:
        scores = scores * scale
    else:
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, -torch.inf)
        scores = torch.add(hidden, scores, alpha=scale)
    return scores.softmax(-1).to(v.dtype) @ v


_PRODUCTS = torch.backends.mkldnn.matmul  # pyright: ignore[reportAttributeAccessIssue]
_USUAL = _PRODUCTS.fp32_precision
_ALLOWED = "bf16"  # makes torch ask oneDNN, which then may round the factors to bfloat16
_users: list[None] = []  # one entry for each large_products() that is open, in whatever thread


@contextmanager
def large_products() -> Iterator[None]:
    """Inside, float32 matrix products on a CPU are oneDNN's, if that computes them in float32.

    MKL, which torch asks otherwise, leaves AVX-512 unused on CPUs that are not Intel's: there the
    products of DiT and vocoder take twice as long. But those with a single row take a third of the
    time in MKL, so this is for networks that always have many. Also usable as a decorator. The
    switch is the whole process's: products of other threads meanwhile are as right, but slower.
    """
    if not _onednn_is_exact():
        yield
        return
    _users.append(None)
    _PRODUCTS.fp32_precision = _ALLOWED
    try:
        yield
    finally:
        _users.pop()
        if not _users:
            _PRODUCTS.fp32_precision = _USUAL


@cache
def _onednn_is_exact() -> bool:
    """Whether it does not round, though it may; it has no use for that on CPUs without AMX."""
    _PRODUCTS.fp32_precision = _ALLOWED
    fine = torch.full((256, 256), 1 + 2**-12)  # bfloat16 rounds that to 1
    exact = torch.equal(fine @ torch.eye(256), fine)
    _PRODUCTS.fp32_precision = _USUAL
    return exact


def rotary_frequencies(dim: int, *, theta: float, device: torch.device | None = None) -> Tensor:
    """[dim/2] angular frequencies theta^(-2i/dim) in float32 (Su et al. 2021)."""
    exponent = torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim
    return 1.0 / theta**exponent  # rounds as the reference does; theta**-exponent does not


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the pairs (i, i + D/2) of x [..., D] by angles given as cos and sin [..., D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def split_heads(x: Tensor, head_size: int) -> Tensor:
    """[B,T,H*D] -> [B,H,T,D]."""
    return x.unflatten(-1, (-1, head_size)).transpose(-3, -2)


def join_heads(x: Tensor) -> Tensor:
    """[B,H,T,D] -> [B,T,H*D]."""
    return x.transpose(-3, -2).flatten(-2)
