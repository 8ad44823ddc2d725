"""Mel of a voice -> codec ids (50/s), and back to a coarse mel: the trainable encoder side.

Shapes: B clips, F mel frames (100/s), N codes (50/s), C hidden size, L quantised dimensions.

Convolutional encoder, finite scalar quantisation (Mentzer et al. 2023), and a decoder that is told
the voice, so that the codes need not carry it. The decoder exists to train the codes (and to hear
them early); speech comes from the DiT.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import SpeechTokenizerConfig

# natural-log mel of speech has about this mean and spread; the networks see it centred
MEL_MEAN, MEL_STD = -6.0, 2.5


class SpeechTokenizer(nn.Module):
    def __init__(self, config: SpeechTokenizerConfig):
        super().__init__()
        self.config = config
        width, stride = config.hidden_size, config.frames_per_code
        kernel = config.kernel_size
        self.encoder_in = nn.Conv1d(config.mel_dim, width, kernel, padding=kernel // 2)
        self.encoder_down = nn.Conv1d(width, width, 2 * stride, stride=stride, padding=stride // 2)
        self.encoder = nn.ModuleList(
            ConvNeXtBlock(width, kernel=kernel) for _ in range(config.encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.encoder_out = nn.Linear(width, len(config.fsq_levels))
        self.decoder_in = nn.Linear(len(config.fsq_levels), width)
        self.decoder_voice = nn.Linear(config.cond_dim, width)
        self.decoder = nn.ModuleList(
            ConvNeXtBlock(width, kernel=kernel) for _ in range(config.decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.decoder_out = nn.Linear(width, config.mel_dim * stride)

    def encode(self, mel: Tensor) -> Tensor:
        """Natural-log mel [B,F,80] -> codec ids int64 [B,N], N = ceil(F / frames_per_code)."""
        return self.ids(self.quantise(self.latents(mel)))

    def latents(self, mel: Tensor) -> Tensor:
        """[B,F,80] -> unquantised [B,N,L]."""
        padding = -mel.shape[1] % self.config.frames_per_code
        x = F.pad((mel - MEL_MEAN) / MEL_STD, (0, 0, 0, padding)).transpose(1, 2)
        x = self.encoder_down(self.encoder_in(x))
        for block in self.encoder:
            x = block(x)
        return self.encoder_out(self.encoder_norm(x.transpose(1, 2)))

    def quantise(self, latents: Tensor) -> Tensor:
        """[B,N,L] -> the nearest grid point in [-1,1]^L, with a straight-through gradient."""
        levels = self._levels(latents)
        half = (levels - 1) / 2
        # even numbers of levels have no grid point at zero: bound and round half a step aside
        offset = (levels % 2 == 0) * 0.5
        shift = (offset / half).atanh()
        bounded = (latents.float() + shift).tanh() * half - offset
        rounded = bounded + (bounded.round() - bounded).detach()
        return (rounded + offset) / half

    def ids(self, quantised: Tensor) -> Tensor:
        """Grid points [B,N,L] -> ids int64 [B,N] in mixed radix, first dimension lowest."""
        levels = self._levels(quantised)
        digits = ((quantised + 1) * (levels - 1) / 2).round().long()
        return (digits * self._places(quantised.device)).sum(-1)

    def grid(self, ids: Tensor) -> Tensor:
        """ids int64 [B,N] -> grid points float32 [B,N,L]; the inverse of `ids`."""
        levels = torch.tensor(self.config.fsq_levels, device=ids.device)
        digits = ids[..., None] // self._places(ids.device) % levels
        return digits / (levels - 1) * 2 - 1

    def decode(self, quantised: Tensor, cond: Tensor) -> Tensor:
        """Grid points [B,N,L] and voice [B,cond_dim] -> natural-log mel [B,2N,80]."""
        x = self.decoder_in(quantised) + self.decoder_voice(cond)[:, None]
        x = x.transpose(1, 2)
        for block in self.decoder:
            x = block(x)
        mel = self.decoder_out(self.decoder_norm(x.transpose(1, 2)))
        return mel.unflatten(-1, (-1, self.config.mel_dim)).flatten(1, 2) * MEL_STD + MEL_MEAN

    def _levels(self, like: Tensor) -> Tensor:
        return torch.tensor(self.config.fsq_levels, dtype=torch.float32, device=like.device)

    def _places(self, device: torch.device) -> Tensor:
        levels = torch.tensor((1, *self.config.fsq_levels[:-1]), device=device)
        return levels.cumprod(0)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then a pointwise feed-forward, on a residual (Liu et al. 2022)."""

    def __init__(self, width: int, *, kernel: int):
        super().__init__()
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[B,C,N] -> [B,C,N]."""
        y = self.norm(self.depthwise(x).transpose(1, 2))
        return x + self.outer(F.gelu(self.inner(y))).transpose(1, 2)
