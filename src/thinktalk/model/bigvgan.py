"""Mel in, samples out: the BigVGAN vocoder (Lee et al. 2023), 100 mel frames/s -> 24 kHz.

Shapes: B rows, M mel bands, T positions at the rate of the layer, C channels, N blocks of samples.
Every learned periodicity (SnakeBeta) runs at twice its rate between two fixed low-pass filters, so
that its harmonics do not alias. Reference: transformers modeling_qwen2_5_omni.py.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import BigVGANConfig
from thinktalk.model.layers import wide_product

MIN_DB = -115.0  # the mel, in decibel, is clamped here and scaled to -1..1
REFERENCE_DB = 20.0
DB_PER_NEPER = 20 / math.log(10)


class BigVGAN(nn.Module):
    def __init__(self, config: BigVGANConfig):
        super().__init__()
        self.config = config
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.mel_dim, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(
                channels, channels // 2, kernel, stride=rate, padding=(kernel - rate) // 2
            )
            self.ups.append(nn.ModuleList([up]))
            channels //= 2
            for size, dilations in _shapes(config):
                self.resblocks.append(ResBlock(channels, size, dilations))
        self.activation_post = Activation(channels)
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)
        self.register_buffer("up_band", None, persistent=False)
        self.register_buffer("down_band", None, persistent=False)
        self.reset_buffers()

    def reset_buffers(self) -> None:
        """Computes what no checkpoint stores; call it after building on the meta device."""
        like = self.conv_pre.weight
        self.up_band, self.down_band = (band.to(like) for band in resampling_bands())

    def forward(self, mel: Tensor) -> Tensor:
        """Natural-log mel [B,M,T] -> samples [B, T * samples_per_frame] in -1..1."""
        assert mel.shape[1] == self.config.mel_dim, (mel.shape, self.config.mel_dim)
        bands = Bands(self.up_band, self.down_band)
        x = self.conv_pre(scaled(mel))
        per_stage = len(self.resblocks) // len(self.ups)
        for stage, (up,) in enumerate(self.ups):  # pyright: ignore[reportGeneralTypeIssues]
            x = up(x)
            blocks = self.resblocks[stage * per_stage : (stage + 1) * per_stage]
            x = sum(block(x, bands) for block in blocks) / per_stage
        x = self.conv_post(self.activation_post(x, bands))
        return x.clamp(-1.0, 1.0).squeeze(1)

    @property
    def context_frames(self) -> int:
        """Mel frames on each side that reach into the samples of one frame (34 in the 7B model)."""
        first, last = -3, self.config.samples_per_frame - 1 + 3  # conv_post on one frame's samples
        first, last = first - HALO, last + HALO
        widest = max(_reach(size, dilations) for size, dilations in _shapes(self.config))
        stages = zip(self.config.upsample_rates, self.config.upsample_kernel_sizes, strict=True)
        for rate, kernel in reversed(list(stages)):
            first, last = first - widest, last + widest
            # output n of the transposed convolution is fed by inputs (n + pad - kernel, n + pad]
            pad = (kernel - rate) // 2
            first, last = -((kernel - 1 - pad - first) // rate), (last + pad) // rate
        return max(-(first - 3), last + 3)


def scaled(mel: Tensor) -> Tensor:
    """Natural-log mel -> decibel, clamped below, mapped linearly to -1..1."""
    decibel = (mel * DB_PER_NEPER).clamp(min=MIN_DB) - REFERENCE_DB
    return (2 * (decibel - MIN_DB) / -MIN_DB - 1).clamp(-1.0, 1.0)


class ResBlock(nn.Module):
    """Per dilation: x + conv(activation(dilated conv(activation(x))))."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        pads = [(kernel - 1) * dilation // 2 for dilation in dilations]
        self.convs1 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=pad)
            for dilation, pad in zip(dilations, pads, strict=True)
        )
        self.convs2 = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations
        )
        self.activations = nn.ModuleList(Activation(channels) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor, bands: "Bands") -> Tensor:
        before, between = self.activations[::2], self.activations[1::2]
        for act1, conv1, act2, conv2 in zip(before, self.convs1, between, self.convs2, strict=True):
            x = x + conv2(act2(conv1(act1(x, bands)), bands))
        return x


class Activation(nn.Module):
    """Up by 2, SnakeBeta, down by 2."""

    def __init__(self, channels: int):
        super().__init__()
        self.act = SnakeScales(channels)

    def forward(self, x: Tensor, bands: "Bands") -> Tensor:
        inputs = x, self.act.alpha, self.act.beta, *bands
        if torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type):
            return _AntiAliasedSnake.apply(*inputs)  # pyright: ignore[reportReturnType]
        return _anti_aliased_snake(*inputs)


class SnakeScales(nn.Module):
    """SnakeBeta u + sin^2(e^alpha u) / e^beta: frequency and height per channel, as logarithms."""

    def __init__(self, channels: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))


# The filters are banded matrix products over blocks of samples, each with what it needs of its
# neighbours: [..., BLOCK + 2 UP_HALO] samples -> 2 BLOCK values at twice the rate, and
# [..., 2 BLOCK + 2 DOWN_HALO] of those -> BLOCK.
TAPS = 12
BLOCK = 16  # samples; measured: 16 beats 8, 12, 24 and 32 on one core with AVX-512
UP_HALO = 3  # samples of each neighbour that the doubled signal of a block is made of
DOWN_HALO = 5  # positions at twice the rate
HALO = 5  # samples on each side that one sample of an activation's output depends on


class Bands(NamedTuple):
    up: Tensor  # [BLOCK + 2 UP_HALO, 2 BLOCK]
    down: Tensor  # [2 BLOCK + 2 DOWN_HALO, BLOCK]


def resampling_bands() -> Bands:
    taps = low_pass_taps()

    def tap(index: int) -> float:
        return taps[index] if 0 <= index < TAPS else 0.0

    samples, doubled = range(-UP_HALO, BLOCK + UP_HALO), range(2 * BLOCK + 2 * DOWN_HALO)
    up = [[2 * tap(m - 2 * n + TAPS // 2 - 1) for m in range(2 * BLOCK)] for n in samples]
    down = [[tap(m - 2 * n) for n in range(BLOCK)] for m in doubled]
    return Bands(torch.tensor(up), torch.tensor(down))


def low_pass_taps(cutoff: float = 0.25, half_width: float = 0.3) -> list[float]:
    """Kaiser-windowed sinc of TAPS taps with sum 1; frequencies in cycles per sample."""
    half = TAPS // 2
    attenuation = 2.285 * (half - 1) * math.pi * 4 * half_width + 7.95
    assert attenuation > 50, attenuation  # decibel; Kaiser's formula for this range:
    beta = 0.1102 * (attenuation - 8.7)
    times = [n - half + 0.5 for n in range(TAPS)]
    edge = (TAPS - 1) / 2
    windows = [_bessel_i0(beta * math.sqrt(1 - (t / edge) ** 2)) for t in times]
    sincs = [math.sin(2 * math.pi * cutoff * t) / (math.pi * t) for t in times]
    taps = [window * sinc for window, sinc in zip(windows, sincs, strict=True)]
    return [tap / sum(taps) for tap in taps]


def _anti_aliased_snake(x: Tensor, alpha: Tensor, beta: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """x [B,C,T], alpha and beta [C], the two bands -> [B,C,T]."""
    u = _doubled(x, up.to(x.dtype))
    rate, height, _ = _rate_height(alpha, beta, x.dtype)
    sine2 = (u * rate).sin_()
    sine2.mul_(sine2)
    return _halved(sine2.mul_(height).add_(u), down.to(x.dtype))


class _AntiAliasedSnake(torch.autograd.Function):
    """The same with a backward, written by hand because the chain of elementwise operations at
    twice the rate is what the vocoder spends its time on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, beta: Tensor, up: Tensor, down: Tensor):
        with torch.autocast(x.device.type, enabled=False):
            up, down = up.to(x.dtype), down.to(x.dtype)
            u = _doubled(x, up)
            rate, height, _ = _rate_height(alpha, beta, x.dtype)
            sine2 = (u * rate).sin_()
            sine2.mul_(sine2)
            ctx.save_for_backward(u, sine2, alpha, beta, up, down)
            return _halved(torch.addcmul(u, sine2, height), down)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        u, sine2, alpha, beta, up, down = ctx.saved_tensors
        rate, height, height_slope = _rate_height(alpha, beta, u.dtype)
        g = _overlap_add(_blocks(grad, BLOCK) @ down.mT, DOWN_HALO, length=u.shape[-1])
        slope = (u * (2 * rate)).sin_().mul_(g)  # d sin^2(v) = sin(2v) dv
        alpha_grad = (slope * u).sum((0, 2)) * (rate * height).flatten()
        beta_grad = (g * sine2).sum((0, 2)) * height_slope.flatten()
        g.addcmul_(slope, rate * height)
        x_grad = _overlap_add(_blocks(g, 2 * BLOCK) @ up.mT, UP_HALO, length=grad.shape[-1])
        return x_grad, alpha_grad, beta_grad, None, None


def _doubled(x: Tensor, up: Tensor) -> Tensor:
    """[B,C,T] -> [B,C,2T], low-passed."""
    return (wide_product(_windows(x, UP_HALO, step=BLOCK), up.mT)).flatten(2)[
        ..., : 2 * x.shape[-1]
    ]


def _halved(u: Tensor, down: Tensor) -> Tensor:
    """[B,C,2T] -> [B,C,T], low-passed."""
    return (wide_product(_windows(u, DOWN_HALO, step=2 * BLOCK), down.mT)).flatten(2)[
        ..., : u.shape[-1] // 2
    ]


def _rate_height(alpha: Tensor, beta: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """e^alpha, 1/e^beta and the latter's derivative to beta, each [C,1]."""
    scale = beta.exp()
    height = 1 / (scale + 1e-9)
    values = alpha.exp(), height, -scale * height.square()
    first, second, third = (value.to(dtype)[:, None] for value in values)
    return first, second, third


def _blocks(x: Tensor, size: int) -> Tensor:
    """[B,C,T] -> [B,C,N,size], zeros behind the end."""
    return F.pad(x, (0, -x.shape[-1] % size)).unflatten(-1, (-1, size))


def _windows(x: Tensor, halo: int, *, step: int) -> Tensor:
    """[B,C,T] -> [B,C,N,step+2*halo]: blocks with their neighbours' values, ends repeated."""
    rows, channels, length = x.shape
    padded = x.new_empty(rows, channels, -(-length // step) * step + 2 * halo)
    padded[..., :halo] = x[..., :1]
    padded[..., halo : halo + length] = x
    padded[..., halo + length :] = x[..., -1:]
    return padded.unfold(-1, step + 2 * halo, step).contiguous()


def _overlap_add(g: Tensor, halo: int, *, length: int) -> Tensor:
    """The transpose of `_windows`: [B,C,N,step+2*halo] -> [B,C,length]."""
    rows, channels, blocks, width = g.shape
    step = width - 2 * halo
    x = g.new_zeros(rows, channels, blocks + 1, step)
    x[:, :, :-1] = g[..., :step]
    x[:, :, 1:, : 2 * halo] += g[..., step:]
    x = x.flatten(2)
    out = x[..., halo : halo + length].contiguous()
    out[..., 0] += x[..., :halo].sum(-1)
    out[..., -1] += x[..., halo + length :].sum(-1)
    return out


def _bessel_i0(x: float) -> float:
    return sum((x / 2) ** (2 * k) / math.factorial(k) ** 2 for k in range(30))


def _shapes(config: BigVGANConfig) -> list[tuple[int, tuple[int, ...]]]:
    """(kernel size, dilations) of the residual blocks that run side by side in every stage."""
    return list(zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True))


def _reach(kernel: int, dilations: tuple[int, ...]) -> int:
    """Samples on each side that one sample of a residual block's output depends on."""
    return sum((kernel - 1) // 2 * (dilation + 1) + 2 * HALO for dilation in dilations)
