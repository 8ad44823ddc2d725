"""The vocoder's judges: waves in, how real they sound out; and what both sides learn from that.

Shapes: B waves of n samples. Judges by period (HiFi-GAN, Kong et al. 2020) fold a wave into rows of
p samples, so that a pitch of that period stands in columns; judges by resolution (UnivNet, Jang et
al. 2021) see its spectrum. All losses are those of least squares (Mao et al. 2017).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PERIODS = (2, 3, 5, 7, 11)
RESOLUTIONS = ((512, 128), (1024, 256), (2048, 512))  # window and hop, in samples
LEAK = 0.1


class Verdict(NamedTuple):
    """scores [B,...]: 1 is real, 0 is made; features: what the layers below saw."""

    scores: Tensor
    features: list[Tensor]


class Judges(nn.Module):
    def __init__(
        self,
        *,
        width: int = 16,
        periods: Sequence[int] = PERIODS,
        resolutions: Sequence[tuple[int, int]] = RESOLUTIONS,
    ):
        super().__init__()
        self.by_period = nn.ModuleList(PeriodJudge(period, width) for period in periods)
        self.by_spectrum = nn.ModuleList(SpectrumJudge(*sizes, width) for sizes in resolutions)

    def forward(self, wave: Tensor) -> list[Verdict]:
        """Waves [B,n] -> a verdict of every judge."""
        return [judge(wave) for judge in (*self.by_period, *self.by_spectrum)]


class PeriodJudge(nn.Module):
    def __init__(self, period: int, width: int):
        super().__init__()
        self.period = period
        channels = (1, width, 2 * width, 4 * width, 4 * width)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (5, 1), stride=(3, 1), padding=(2, 0))
            for a, b in itertools.pairwise(channels)
        )
        self.last = nn.Conv2d(channels[-1], 1, (3, 1), padding=(1, 0))

    def forward(self, wave: Tensor) -> Verdict:
        wave = F.pad(wave[:, None], (0, -wave.shape[1] % self.period), mode="reflect")
        return _verdict(wave.unflatten(2, (-1, self.period)), self.layers, self.last)


class SpectrumJudge(nn.Module):
    def __init__(self, window: int, hop: int, width: int):
        super().__init__()
        self.window, self.hop = window, hop
        channels = (1, width, width, width, width)
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, (9, 3), stride=(2 if number else 1, 1), padding=(4, 1))
            for number, (a, b) in enumerate(itertools.pairwise(channels))
        )
        self.last = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, wave: Tensor) -> Verdict:
        window = torch.hann_window(self.window, device=wave.device)
        spectrum = torch.stft(
            wave.float(), self.window, self.hop, window=window, return_complex=True
        )
        power = spectrum.real.square() + spectrum.imag.square()
        # the root needs a slope at zero
        return _verdict((power + 1e-9).sqrt()[:, None], self.layers, self.last)


def judging_loss(real: list[Verdict], made: list[Verdict]) -> Tensor:
    """What the judges learn from: real waves score 1, made ones 0; the mean over judges."""
    each = [
        (1 - r.scores).square().mean() + m.scores.square().mean()
        for r, m in zip(real, made, strict=True)
    ]
    return torch.stack(each).mean()


def fooling_loss(made: list[Verdict]) -> Tensor:
    """What the vocoder learns from: its waves score 1; the mean over judges."""
    return torch.stack([(1 - verdict.scores).square().mean() for verdict in made]).mean()


def feature_loss(real: list[Verdict], made: list[Verdict]) -> Tensor:
    """How far made waves look from the real ones to the judges: L1 as a share of the real feature's
    mean size, the mean over all layers."""
    each = [
        (there.detach() - here).abs().mean() / there.detach().abs().mean().clamp(min=1e-5)
        for r, m in zip(real, made, strict=True)
        for there, here in zip(r.features, m.features, strict=True)
    ]
    return torch.stack(each).mean()


def unmoved(judges: Judges, wave: Tensor) -> list[Verdict]:
    """Their verdicts; gradients reach the wave, but not the judges."""
    weights = {name: weight.detach() for name, weight in judges.named_parameters()}
    return torch.func.functional_call(judges, weights, (wave,))


def _verdict(x: Tensor, layers: nn.ModuleList, last: nn.Conv2d) -> Verdict:
    features = []
    for layer in layers:
        x = F.leaky_relu(layer(x), LEAK)
        features.append(x)
    return Verdict(last(x).float(), features)
