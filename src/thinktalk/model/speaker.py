"""A reference voice's mel in, one vector out: ECAPA-TDNN (Desplanques et al. 2020), without norms.

Shapes: B rows, T mel frames, C channels. Depends on the voice only, so it runs once per voice.
Reference: transformers modeling_qwen2_5_omni.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import DiTConfig


class Ecapa(nn.Module):
    def __init__(self, config: DiTConfig):
        super().__init__()
        first, *middle, last = zip(
            config.enc_channels, config.enc_kernel_sizes, config.enc_dilations, strict=True
        )
        self.blocks = nn.ModuleList([Tdnn(config.mel_dim, *first)])
        channels = first[0]
        for out, kernel, dilation in middle:
            self.blocks.append(SeRes2Net(channels, out, kernel, dilation, config))
            channels = out
        joined = sum(channels for channels, _, _ in middle)
        if joined != last[0]:
            raise ValueError(
                f"config.json: the last of enc_channels is {last[0]}; it must be the sum of the "
                f"middle ones, {joined}"
            )
        self.mfa = Tdnn(joined, *last)
        self.asp = AttentivePooling(last[0], config.enc_attention_channels)
        self.fc = nn.Conv1d(2 * last[0], config.enc_dim, 1)

    def forward(self, ref_mel: Tensor) -> Tensor:
        """Natural-log mel [B,T,mel_dim], T >= 5 -> [B,enc_dim]."""
        first, *middle = self.blocks
        x = first(ref_mel.mT)
        outputs = []
        for block in middle:
            x = block(x)
            outputs.append(x)
        pooled = self.asp(self.mfa(torch.cat(outputs, dim=1)))
        return self.fc(pooled).squeeze(-1)


class Tdnn(nn.Module):
    """Convolution with reflected edges, then ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, dilation: int):
        super().__init__()
        self.conv = nn.Conv1d(
            channels, out, kernel, dilation=dilation, padding="same", padding_mode="reflect"
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class SeRes2Net(nn.Module):
    """x + squeeze-excitation of (1x1, Res2Net, 1x1)."""

    def __init__(self, channels: int, out: int, kernel: int, dilation: int, config: DiTConfig):
        super().__init__()
        self.tdnn1 = Tdnn(channels, out, 1, 1)
        self.res2net_block = Res2Net(out, kernel, dilation, config.enc_res2net_scale)
        self.tdnn2 = Tdnn(out, out, 1, 1)
        self.se_block = SqueezeExcitation(out, config.enc_se_channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x))))


class Res2Net(nn.Module):
    """Channel groups in a row: the first passes, each next one also sees its left neighbour."""

    def __init__(self, channels: int, kernel: int, dilation: int, scale: int):
        super().__init__()
        width = channels // scale
        self.blocks = nn.ModuleList(Tdnn(width, width, kernel, dilation) for _ in range(scale - 1))

    def forward(self, x: Tensor) -> Tensor:
        first, *groups = x.chunk(len(self.blocks) + 1, dim=1)
        outputs = [first]
        for group, block in zip(groups, self.blocks, strict=True):
            outputs.append(block(group if len(outputs) == 1 else group + outputs[-1]))
        return torch.cat(outputs, dim=1)


class SqueezeExcitation(nn.Module):
    """Scales every channel by a gate computed from the channels' means over time."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, inner, 1)
        self.conv2 = nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        return x * self.conv2(F.relu(self.conv1(mean))).sigmoid()


class AttentivePooling(nn.Module):
    """[B,C,T] -> weighted mean and deviation over time [B,2C,1]; every channel has its weights."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.tdnn = Tdnn(3 * channels, inner, 1, 1)
        self.conv = nn.Conv1d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        uniform = torch.full_like(x[:, :1], 1 / x.shape[-1])
        context = [s.expand_as(x) for s in _mean_deviation(x, uniform)]
        weights = self.conv(self.tdnn(torch.cat([x, *context], dim=1)).tanh()).softmax(-1)
        return torch.cat(_mean_deviation(x, weights), dim=1)


def _mean_deviation(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    mean = (weights * x).sum(-1, keepdim=True)
    variance = (weights * (x - mean).square()).sum(-1, keepdim=True)
    return mean, variance.clamp(min=1e-12).sqrt()
