"""Step 5: log-mel windows of 2 s in, 25 tokens per second for the Thinker out.

Shapes: N windows, F mel frames (100/s), P positions after the stride-2 convolution (50/s), T tokens
(25/s), C width of the encoder. A Whisper encoder (Radford et al. 2022) whose convolutions,
positions and attention never cross the border of a window, so every window can be encoded as soon
as it has been heard. Reference: transformers modeling_qwen2_5_omni.py.
"""

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import AudioConfig
from thinktalk.model.layers import attend, join_heads, split_heads

FRAMES_PER_POSITION = 2  # stride of the second convolution
POSITIONS_PER_TOKEN = 2  # neighbours averaged after the last layer
SLOWEST_TIMESCALE = 10_000.0  # positions per radian of the slowest sinusoid

Count = TypeVar("Count", int, Tensor)


class AudioEncoder(nn.Module):
    def __init__(self, config: AudioConfig):
        super().__init__()
        self.config = config
        width = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=FRAMES_PER_POSITION, padding=1)
        # in every checkpoint, used by nothing: the prompt's audio_bos and audio_eos are text
        self.audio_bos_eos_token = nn.Embedding(2, config.output_dim)
        self.layers = nn.ModuleList(AudioLayer(config) for _ in range(config.encoder_layers))
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Linear(width, config.output_dim)

    def forward(self, mel: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """mel [N,bins,F], lengths int64 [N] of 1..F frames -> tokens [N,T,output_dim], counts [N].

        F is at most one window; frames past a window's length are ignored, tokens past its count
        are zero. A window's tokens do not depend on the other windows. One or two frames give none.
        """
        num_frames = mel.shape[-1]
        assert mel.shape[:2] == (len(lengths), self.config.num_mel_bins), (mel.shape, lengths.shape)
        assert 0 < num_frames <= self.config.window_frames, mel.shape
        heard = up_to(lengths, num_frames)[:, None]  # [N,1,F]
        x = mel.to(self.conv1.weight.dtype).masked_fill(~heard, 0)
        x = F.gelu(self.conv1(x)).masked_fill(~heard, 0)
        x = F.gelu(self.conv2(x)).transpose(1, 2)  # [N,P,C]
        # in the dtype of the weights: under autocast the residual stream stays float32
        x = x + sinusoids(x, dtype=self.conv1.weight.dtype)
        mask = up_to(num_positions(lengths), x.shape[1])[:, None, None]  # [N,1,1,P]
        for layer in self.layers:
            x = layer(x, mask)
        num_pairs = num_tokens(num_frames)
        pairs = x[:, : num_pairs * POSITIONS_PER_TOKEN].unflatten(
            1, (num_pairs, POSITIONS_PER_TOKEN)
        )
        x = self.proj(self.ln_post(pairs.mean(2)))  # [N,T,output_dim]
        counts = num_tokens(lengths)
        return x.masked_fill(~up_to(counts, num_pairs)[..., None], 0), counts


class AudioLayer(nn.Module):
    def __init__(self, config: AudioConfig):
        super().__init__()
        width = config.d_model
        self.self_attn = AudioAttention(width, config.encoder_attention_heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, config.encoder_ffn_dim)
        self.fc2 = nn.Linear(config.encoder_ffn_dim, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), mask)
        x = x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x))))
        if x.dtype == torch.float16:  # Whisper's activations can overflow half precision
            limit = torch.finfo(x.dtype).max - 1000
            x = x.clamp(-limit, limit)
        return x


class AudioAttention(nn.Module):
    """Attention of every position to all positions of its window."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.head_size = width // num_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (
            split_heads(projection(x), self.head_size)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(join_heads(attend(q, k, v, mask=mask)))


def split_windows(mel: Tensor, *, window_frames: int = 200) -> tuple[Tensor, Tensor]:
    """mel [bins,F] -> windows [N,bins,window_frames], zero after the end, lengths int64 [N]."""
    num_frames = mel.shape[-1]
    num_windows = -(-num_frames // window_frames)
    missing = num_windows * window_frames - num_frames
    windows = F.pad(mel, (0, missing)).unflatten(-1, (num_windows, window_frames))
    lengths = torch.full((num_windows,), window_frames, device=mel.device)
    lengths[-1:] -= missing
    return windows.transpose(0, 1), lengths


def num_tokens(num_frames: Count) -> Count:
    """Tokens of a window, or of a whole clip, of so many mel frames (an int, or a tensor of them).

    The same for both, because a full window (200 frames) loses nothing to rounding.
    """
    return num_positions(num_frames) // POSITIONS_PER_TOKEN


def num_positions(num_frames: Count) -> Count:
    return (num_frames + FRAMES_PER_POSITION - 1) // FRAMES_PER_POSITION


def sinusoids(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Position table [P,C] for x [N,P,C], from zero: sines, then cosines (Vaswani et al. 2017).

    Computed anew in every call, so that a network built without storage has nothing to fill in.
    """
    _, num_rows, width = x.shape
    half = width // 2
    step = math.log(SLOWEST_TIMESCALE) / (half - 1)
    rates = torch.exp(-step * torch.arange(half, dtype=torch.float32, device=x.device))
    rows = torch.arange(num_rows, dtype=torch.float32, device=x.device)
    angles = rows[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1).to(dtype)


def up_to(counts: Tensor, size: int) -> Tensor:
    """bool [N,size], True in the first counts[n] places of row n."""
    return torch.arange(size, device=counts.device) < counts[:, None]
