"""Parts shared by several networks: norm, gated feed-forward, rotary positions, attention.

Shapes: B rows, T new tokens, S keys, H heads, K key/value heads, D head size.
"""

from dataclasses import dataclass

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
        # and its own products inside are small ones that do not profit from oneDNN
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


# Not every build of torch has oneDNN; the operator is the one that torch.compile gives linears.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def wide_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear of x [...,I], weight [O,I] and bias [O], for networks that always have many rows.

    MKL, which torch asks on a CPU, leaves AVX-512 unused on CPUs that are not Intel's: there the
    products of DiT and vocoder take twice as long as in oneDNN. But those with a single row take a
    third of the time in MKL, so this is not for the others. Only without gradients and in float32,
    as exactly.
    """
    if not (_HAS_ONEDNN and x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class WideLinear(nn.Linear):
    """A linear layer that is always given many rows: see wide_product."""

    def forward(self, input: Tensor) -> Tensor:
        return wide_product(input, self.weight, self.bias)


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
