"""The Qwen2 decoder under both Thinker and Talker: embeddings in, hidden states out.

Shapes: B rows, T new tokens, E width of the embedding table, C hidden size, H heads, D head size.
Pre-norm blocks, grouped-query attention with biases on q, k, v, SwiGLU, and rotary positions with
three axes (TMRoPE, Qwen2.5-Omni report 2025). Reference: transformers modeling_qwen2_5_omni.py.
"""

import torch
from torch import Tensor, nn

from thinktalk.config import DecoderConfig
from thinktalk.model.cache import CacheView, KVCache, StepPlan
from thinktalk.model.layers import (
    Packed,
    RMSNorm,
    SwiGLU,
    apply_rotary,
    attend,
    join_heads,
    rotary_frequencies,
    split_heads,
)

Rotation = tuple[Tensor, Tensor]  # cos and sin, each [B,1,T,D]


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.embedding_dim)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        *,
        positions: Tensor,
        cache: KVCache | None = None,
        plan: StepPlan | None = None,
        mask: Tensor | Packed | None = None,
    ) -> Tensor:
        """x [B,T,C], positions int64 [3,B,T] -> hidden states after the final norm [B,T,C].

        With a cache, `plan` says where the tokens go and what they see. Without one, every token
        sees the tokens before it in its row, or exactly what `mask` (bool, broadcastable to
        [B,H,T,T], or the samples of a packed row) allows.
        """
        assert x.shape[-1] == self.config.hidden_size, (x.shape, self.config.hidden_size)
        assert positions.shape == (3, *x.shape[:2]), (positions.shape, x.shape)
        rotation = self.rotation(positions, dtype=x.dtype)
        view = None
        if cache is not None:
            assert plan is not None, "a cache needs a plan"
            view, mask = cache.view(plan, x.shape[1]), plan.mask(x.shape[1])
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, view, mask, index)
        return self.norm(x)

    def rotation(self, positions: Tensor, *, dtype: torch.dtype) -> Rotation:
        """The angles of every token: frequency i follows the axis that mrope_section gives it."""
        config = self.config
        frequencies = rotary_frequencies(
            config.head_size, theta=config.rope_theta, device=positions.device
        )
        angles = positions[..., None].float() * frequencies  # [3,B,T,D/2]
        by_axis = angles.split(config.mrope_section, dim=-1)
        angles = torch.cat([part[axis] for axis, part in enumerate(by_axis)], dim=-1)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(dtype), angles.sin().to(dtype)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        view: CacheView | None,
        mask: Tensor | Packed | None,
        index: int,
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotation, view, mask, index)
        return x + self.mlp(self.post_attention_layernorm(x))


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.head_size = config.head_size
        query_width = config.num_attention_heads * config.head_size
        key_width = config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=True)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=True)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        view: CacheView | None,
        mask: Tensor | Packed | None,
        index: int,
    ) -> Tensor:
        q, k, v = (
            split_heads(projection(x), self.head_size)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary(q, *rotation), apply_rotary(k, *rotation)
        if view is not None:
            k, v = view.update(index, k, v)
        causal = mask is None and x.shape[1] > 1
        return self.o_proj(join_heads(attend(q, k, v, mask=mask, causal=causal)))
