"""Codec ids and a voice in, mel out: a flow-matching transformer and its ODE sampler.

Shapes: B rows, n codec ids, T = repeats * n mel frames, M mel bands, D hidden size, H heads;
N blocks of S frames. Attention never leaves the block of a frame, except that a few layers also
see the block before and one sees the block after, so that sound can be rendered as ids arrive.
A state of the ODE is a mel; time runs from 0 (noise) to 1. Reference: transformers
modeling_qwen2_5_omni.py; the shape of the network is F5-TTS (Chen et al. 2024).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import DiTConfig
from thinktalk.model.dit_layer import Layer, Layout, modulated, modulation_linear, pairs
from thinktalk.model.flow import (
    NUM_POINTS,
    Modulations,
    Schedule,
    Solver,
    evaluation_times,
    integrate,
    time_points,
)
from thinktalk.model.layers import rotary_frequencies
from thinktalk.model.speaker import Ecapa

NUM_TIME_FREQUENCIES = 128


class DiT(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.time_embed = TimeEmbedding(config.hidden_size)
        table = nn.Embedding(config.num_embeds + 1, config.emb_dim)
        self.text_embed = nn.ModuleDict({"codec_embed": table})
        self.input_embed = InputEmbedding(config)
        self.rotary_embed = Rotary(config)
        self.transformer_blocks = nn.ModuleList(
            Layer(
                config, back=i in config.look_backward_layers, ahead=i in config.look_ahead_layers
            )
            for i in range(config.num_hidden_layers)
        )
        self.norm_out = modulation_linear(config.hidden_size, 2)
        self.proj_out = nn.Linear(config.hidden_size, config.mel_dim)

    def forward(
        self,
        mel: Tensor,
        *,
        times: Tensor,
        codes: Tensor,
        cond: Tensor,
        ref_mel: Tensor,
        drop: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The velocity, for training: noisy mel [B,T,M] at times [B] -> [B,T,M].

        codes int64 [B,n], cond [B,enc_emb_dim], ref_mel [B,T',M]. drop: bool [B], rows without
        codes and voice (for guidance). lengths: int64 [B] codec ids per row; the rest is padding,
        which valid frames never see.
        """
        if drop is not None:
            codes = codes.masked_fill(drop[:, None], 0)
            cond = cond.masked_fill(drop[:, None], 0.0)
            ref_mel = ref_mel.masked_fill(drop[:, None, None], 0.0)
        context = self.context(codes, self.input_embed.voice(cond, ref_mel))
        frames = None if lengths is None else lengths * self.config.repeats
        layout = self.layout(*mel.shape[:2], lengths=frames)
        return self.velocity(mel, context, self.modulations(times), layout)[0]

    @torch.no_grad()
    def sample(
        self,
        codes: Tensor,
        *,
        cond: Tensor,
        ref_mel: Tensor,
        noise: Tensor,
        schedule: Schedule,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """The reference's sampler over whole utterances: codes [B,n], noise [B,T,M] -> mel [B,T,M].

        cond [1 or B,enc_emb_dim], ref_mel [1 or B,T',M]; lengths as in forward. Every frame depends
        on ids far ahead, because each evaluation looks one block further.
        """
        rows, frames = noise.shape[:2]
        assert frames == codes.shape[1] * self.config.repeats, (noise.shape, codes.shape)
        voice = self.voice(cond, ref_mel, branches=schedule.branches)
        context = self.branch_context(codes, voice.expand(rows, -1, -1))
        if lengths is not None:
            lengths = (lengths * self.config.repeats).repeat_interleave(schedule.branches)
        layout = self.layout(len(context), frames, lengths=lengths)
        return self.solve(noise, context, layout, schedule)[0]

    # ---- constants of a voice, an utterance, a schedule

    def voice(self, cond: Tensor, ref_mel: Tensor, *, branches: int) -> Tensor:
        """What the voice adds to every frame [B,branches,D]; the second branch has no voice."""
        both = (t.to(self.proj_out.weight) for t in (cond, ref_mel))
        both = (torch.stack([t, torch.zeros_like(t)][:branches], dim=1) for t in both)
        return self.input_embed.voice(*(t.flatten(0, 1) for t in both)).unflatten(0, (-1, branches))

    def context(self, codes: Tensor, voice: Tensor) -> Tensor:
        """What codes [B,n] and voice [B,D] add to the input of every frame: [B,T,D]."""
        context = self.input_embed.codes(self.text_embed["codec_embed"](codes)) + voice[:, None]
        return context.repeat_interleave(self.config.repeats, dim=1)

    def branch_context(self, codes: Tensor, voice: Tensor) -> Tensor:
        """codes [B,n], voice [B,branches,D] -> [B*branches,T,D]; the second branch has code 0."""
        branches = voice.shape[1]
        codes = torch.stack([codes, torch.zeros_like(codes)][:branches], dim=1)
        return self.context(codes.flatten(0, 1), voice.flatten(0, 1))

    def modulations(self, times: Tensor) -> Modulations:
        """times [K] -> all that the network needs to know of them."""
        time = F.silu(self.time_embed(times))
        norms = [*(layer.attn_norm for layer in self.transformer_blocks), self.norm_out]
        return [norm["linear"](time)[:, None, None] for norm in norms]

    @torch.no_grad()
    def schedule(
        self,
        solver: Solver,
        *,
        num_points: int | None = None,
        guidance: float = 0.5,
        sway: float = -1.0,
    ) -> Schedule:
        """When the solver evaluates the velocity, with all modulations computed.

        num_points >= 2 times from 0 to 1, by default NUM_POINTS, moved towards 0 by `sway` (0
        leaves them equidistant). guidance: how far the velocity is moved away from that of the
        branch without codes and voice; at 0 that branch is not computed.
        """
        num_points = num_points or NUM_POINTS[solver]
        points = time_points(num_points, sway=sway)
        times = evaluation_times(solver, points).to(self.proj_out.weight.device)
        modulations = self.modulations(times)
        each = [[values[i : i + 1] for values in modulations] for i in range(len(times))]
        steps = points.diff().tolist()
        return Schedule(solver, steps, each, guidance, 2 if guidance >= 1e-5 else 1)

    def layout(
        self,
        rows: int,
        frames: int,
        *,
        lengths: Tensor | None = None,
        first: Tensor | None = None,
        has_past: Tensor | None = None,
    ) -> Layout:
        """Which frames exist and see each other. lengths: int64 [B] frames that exist per row;
        first: int64 [B] position of the first frame; has_past: bool [B] whether the look-back
        layers will be given the block before the first."""
        size, device = self.config.block_size, self.proj_out.weight.device
        blocks = -(-frames // size)
        place = torch.arange(blocks * size, device=device)
        if lengths is None:
            lengths = torch.full((rows,), frames, device=device)
        valid = (place < lengths[:, None]).view(rows, blocks, size)
        beyond = torch.zeros_like(valid[:, :1])
        before = beyond if has_past is None else has_past[:, None, None].expand_as(beyond)
        # a block that is padding altogether looks at itself: a softmax over nothing is NaN
        own = valid | ~valid.any(-1, keepdim=True)
        back = pairs(torch.cat((before, own), dim=1))
        ahead = torch.cat((own, torch.cat((valid[:, 1:], beyond), dim=1)), dim=2)
        positions = place.view(1, blocks, size)
        if first is not None:
            positions = positions + first[:, None, None]
        masks = [mask.flatten(0, 1)[:, None, None] for mask in (own, back, ahead)]
        return Layout(*masks, *self.rotary_embed(positions))

    # ---- the network

    @property
    def carry_shape(self) -> tuple[int, int]:
        """Keys beside values of one block: frames, 2*H*head_dim."""
        inner = self.config.num_attention_heads * self.config.head_dim
        return self.config.block_size, 2 * inner

    def solve(
        self,
        noise: Tensor,
        context: Tensor,
        layout: Layout,
        schedule: Schedule,
        *,
        past: Tensor | None = None,
        kept: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """From noise [B,T,M] to mel [B,T,M], in the noise's dtype; context [B*branches,T,D].

        Also returns what the block behind the first `kept` ones will need of the last of them: its
        keys and values in every evaluation [B*branches,evaluations,L,S,2*H*head_dim], see velocity.
        past: the same of the block before the first.
        """
        seen: list[Tensor] = []

        def slope(y: Tensor) -> Tensor:
            number = len(seen)
            before = None if past is None else past[:, number]
            y = y.repeat_interleave(schedule.branches, dim=0)
            modulations = schedule.modulations[number]
            v, last = self.velocity(y, context, modulations, layout, past=before, kept=kept)
            seen.append(last)
            if schedule.branches == 1:
                return v
            with_codes, without = v.unflatten(0, (-1, 2)).unbind(1)
            return with_codes + (with_codes - without) * schedule.guidance

        return integrate(noise, slope, schedule), torch.stack(seen, dim=1)

    def velocity(
        self,
        mel: Tensor,
        context: Tensor,
        modulations: Modulations,
        layout: Layout,
        *,
        past: Tensor | None = None,
        kept: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """mel [B,T,M], context [B,T,D] -> velocity [B,T,M], and the keys and values of block number
        kept - 1 in the L look-back layers [B,L,S,2*H*head_dim].

        past: the same of the block before the first, where the layout says that there is one.
        """
        frames, size = mel.shape[1], self.config.block_size
        x = self.input_embed.mel(mel.to(context.dtype)) + context
        x = F.pad(x, (0, 0, 0, -frames % size)).unflatten(1, (-1, size))  # [B,N,S,D]
        seen: list[Tensor] = []
        for index, layer in enumerate(self.transformer_blocks):
            looks_back = index in self.config.look_backward_layers
            before = past[:, len(seen)] if looks_back and past is not None else None
            x, kv = layer(x, modulations[index], layout, before)
            seen += [] if kv is None else [kv[:, kept - 1]]
        scale, shift = modulations[-1].chunk(2, dim=-1)  # in this order, unlike in the layers
        velocity = self.proj_out(modulated(x, shift, scale)).flatten(1, 2)[:, :frames]
        last = torch.stack(seen, 1) if seen else x.new_empty(len(x), 0, *self.carry_shape)
        return velocity.to(mel.dtype), last


class TimeEmbedding(nn.Module):
    """Times [K] -> [K,D]: sines and cosines of 1000 t, then two linears."""

    def __init__(self, dim: int):
        super().__init__()
        first = nn.Linear(2 * NUM_TIME_FREQUENCIES, dim)
        self.time_mlp = nn.Sequential(first, nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, times: Tensor) -> Tensor:
        order = torch.arange(NUM_TIME_FREQUENCIES, dtype=torch.float32, device=times.device)
        frequencies = torch.exp(order * -(math.log(10000) / (NUM_TIME_FREQUENCIES - 1)))
        angles = 1000 * times.float()[:, None] * frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return self.time_mlp(waves.to(next(self.parameters()).dtype))


class InputEmbedding(nn.Module):
    """One linear over [noisy mel | speaker | codec id | cond], taken apart.

    Only the noisy mel changes from one evaluation to the next.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.widths = config.mel_dim, config.enc_dim, config.emb_dim, config.enc_emb_dim
        self.proj = nn.Linear(sum(self.widths), config.hidden_size)
        self.spk_encoder = Ecapa(config)

    def mel(self, mel: Tensor) -> Tensor:
        return F.linear(mel, self.proj.weight.split(self.widths, dim=1)[0])

    def codes(self, embeddings: Tensor) -> Tensor:
        return F.linear(embeddings, self.proj.weight.split(self.widths, dim=1)[2])

    def voice(self, cond: Tensor, ref_mel: Tensor) -> Tensor:
        """cond [B,enc_emb_dim], ref_mel [B,T',M] -> [B,D]."""
        _, speaker, _, extra = self.proj.weight.split(self.widths, dim=1)
        return F.linear(self.spk_encoder(ref_mel), speaker, self.proj.bias) + F.linear(cond, extra)


class Rotary(nn.Module):
    """The frequencies are stored in official checkpoints (rounded), so they are a real buffer."""

    inv_freq: Tensor

    def __init__(self, config: DiTConfig):
        super().__init__()
        real = torch.device("cpu")  # on the meta device torch would import a compiler for this
        frequencies = rotary_frequencies(config.head_dim, theta=config.rope_theta, device=real)
        self.register_buffer("inv_freq", frequencies)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        angles = positions[..., None].float() * self.inv_freq.float()
        return angles.cos(), angles.sin()
