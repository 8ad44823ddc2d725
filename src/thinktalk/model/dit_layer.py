"""A layer of the DiT: blocks of mel frames in, the same out; each sees itself and a neighbour.

Shapes: B rows, N blocks of S frames, D hidden size, H heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import DiTConfig
from thinktalk.model.layers import WideLinear, attend, join_heads, split_heads

NORM_EPS = 1e-6


class Layout(NamedTuple):
    """Masks [B*N,1,1,keys], True where a key exists, and rotary angles [1 or B,N,S,head_dim/2]."""

    own: Tensor
    back: Tensor
    ahead: Tensor
    cos: Tensor
    sin: Tensor


class Layer(nn.Module):
    """Attention and feed-forward, each between a modulated norm and a gate (AdaLN-Zero)."""

    def __init__(self, config: DiTConfig, *, back: bool, ahead: bool):
        super().__init__()
        dim, inner = config.hidden_size, config.ff_mult * config.hidden_size
        self.attn_norm = modulation_linear(dim, 6)
        self.attn = Attention(config, back=back, ahead=ahead)
        up, down = WideLinear(dim, inner), WideLinear(inner, dim)
        parts = up, nn.GELU(approximate="tanh"), nn.Identity(), down
        self.ff = nn.ModuleDict({"ff": nn.Sequential(*parts)})

    def forward(
        self, x: Tensor, modulation: Tensor, layout: Layout, past: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B,N,S,D], modulation [1 or B,1,1,6*D]; past and the second result: see Attention."""
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=-1)
        y, kv = self.attn(modulated(x, shift_a, scale_a), layout, past)
        x = torch.addcmul(x, gate_a, y)
        y = self.ff["ff"](modulated(x, shift_f, scale_f))
        return torch.addcmul(x, gate_f, y), kv


class Attention(nn.Module):
    """Within blocks; with `back` also to the block before, with `ahead` to the block after."""

    def __init__(self, config: DiTConfig, *, back: bool, ahead: bool):
        super().__init__()
        inner = config.num_attention_heads * config.head_dim
        self.to_q = WideLinear(config.hidden_size, inner)
        self.to_k = WideLinear(config.hidden_size, inner)
        self.to_v = WideLinear(config.hidden_size, inner)
        self.to_out = nn.Sequential(WideLinear(inner, config.hidden_size))
        self.head_dim = config.head_dim
        self.back, self.ahead = back, ahead
        if back and ahead:
            raise ValueError("config.json: a layer of the DiT may look back or ahead, not both")

    def forward(
        self, x: Tensor, layout: Layout, past: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B,N,S,D] -> the same shape and, with `back`, keys beside values [B,N,S,2*H*head_dim].

        past: with `back`, those of the block before the first [B,S,2*H*head_dim].
        """
        q, k, v = self.to_q(x), self.to_k(x), self.to_v(x)
        q, k = rotate_first_head(q, layout), rotate_first_head(k, layout)
        kv, mask = None, layout.own
        if self.back:
            kv, mask = torch.cat((k, v), dim=-1), layout.back
            before = torch.zeros_like(kv[:, 0]) if past is None else past
            k, v = pairs(torch.cat((before[:, None], kv), dim=1)).chunk(2, dim=-1)
        elif self.ahead:
            k, v = (pairs(F.pad(t, (0, 0, 0, 0, 0, 1))) for t in (k, v))
            mask = layout.ahead
        heads = (split_heads(t.flatten(0, 1), self.head_dim) for t in (q, k, v))
        y = attend(*heads, mask=mask)  # [B*N,H,S,head_dim]
        return self.to_out(join_heads(y).view_as(q)), kv


def rotate_first_head(x: Tensor, layout: Layout) -> Tensor:
    """x [B,N,S,H*head_dim], in place: head 0 is rotated by interleaved pairs, the others have no
    positions.

    Its pairs come out as two halves, which is the same to a product of a query and a key.
    """
    width = 2 * layout.cos.shape[-1]
    cos, sin = layout.cos.to(x.dtype), layout.sin.to(x.dtype)
    even, odd = x[..., 0:width:2], x[..., 1:width:2]
    x[..., :width] = torch.cat((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
    return x


def pairs(x: Tensor) -> Tensor:
    """Every block with the one after it: [B,N+1,S,...] -> [B,N,2S,...]."""
    return torch.cat((x[:, :-1], x[:, 1:]), dim=2)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x [B,N,S,D] normed over D, then scaled by 1 + scale and shifted; both [1 or B,1,1,D]."""
    if len(shift) == 1:  # then it is one operation
        return F.layer_norm(x, x.shape[-1:], 1 + scale.flatten(), shift.flatten(), NORM_EPS)
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale)


def modulation_linear(dim: int, count: int) -> nn.ModuleDict:
    """From a time to `count` vectors side by side, under its official name."""
    return nn.ModuleDict({"linear": nn.Linear(dim, count * dim)})
