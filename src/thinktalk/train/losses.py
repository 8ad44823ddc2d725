"""Loss functions over tensors: spectra of waves, flow matching, cross-entropy over many rows."""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from thinktalk.media.mel import (
    VOICE_BINS,
    VOICE_FLOOR,
    VOICE_HOP_SAMPLES,
    VOICE_HZ,
    VOICE_WINDOW_SAMPLES,
    slaney_filters,
)

STFT_WINDOWS_SAMPLES = (4096, 2048, 1024, 512, 256, 128)
LOGIT_ROWS = 2048  # rows whose logits are in memory at a time
SPECTRUM_FLOOR = 1e-3  # magnitude below which the logarithm of a spectrum stops counting


def voice_mel(wave: Tensor) -> Tensor:
    """24 kHz [B,n] -> natural-log mel [B,n//240,80], differentiable; equals media.mel.voice_mel."""
    side = (VOICE_WINDOW_SAMPLES - VOICE_HOP_SAMPLES) // 2
    padded = F.pad(wave[:, None], (side, side), mode="reflect")[:, 0]
    magnitude = _spectrum(padded, VOICE_WINDOW_SAMPLES, VOICE_HOP_SAMPLES)
    filters = _filters(str(wave.device))
    return (filters @ magnitude).clamp(min=VOICE_FLOOR).log().transpose(1, 2)


def spectral_loss(wave: Tensor, target: Tensor) -> Tensor:
    """Multi-resolution STFT loss (Yamamoto et al. 2020): log magnitude and convergence.

    wave and target [B,n]. Windows longer than the clip are left out.
    """
    total = wave.new_zeros(())
    sizes = [size for size in STFT_WINDOWS_SAMPLES if size <= wave.shape[-1]]
    for size in sizes:
        ours, true = (_spectrum(x, size, size // 4) for x in (wave, target))
        convergence = (ours - true).norm() / true.norm().clamp(min=SPECTRUM_FLOOR)
        log_ours, log_true = ((x + SPECTRUM_FLOOR).log() for x in (ours, true))
        total = total + convergence + (log_ours - log_true).abs().mean()
    return total / len(sizes)


def flow_matching_pair(mel: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the straight path from noise to mel, and its velocity (Lipman et al. 2023).

    mel and noise [B,F,80], time [B] in [0,1] -> noisy mel and target velocity, both [B,F,80].
    """
    at = time[:, None, None]
    return (1 - at) * noise + at * mel, mel - noise


def token_losses(
    hidden: Tensor, labels: Tensor, *, logits: Callable[[Tensor], Tensor], rows: int = LOGIT_ROWS
) -> tuple[Tensor, Tensor]:
    """hidden [n,C], labels int64 [n] -> cross-entropy [n], and whether the likeliest is right [n].

    Labels of -100 give 0 and are never right. With many rows only so many have logits at a time;
    the backward pass computes them again, so that memory does not grow with n times the vocabulary.
    """

    def part(hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        scores = logits(hidden)
        losses = F.cross_entropy(scores, labels, reduction="none")
        return losses, scores.argmax(-1) == labels

    if len(hidden) <= rows:
        return part(hidden, labels)
    pairs = zip(hidden.split(rows), labels.split(rows), strict=True)
    parts = [checkpoint(part, *pair, use_reentrant=False) for pair in pairs]
    losses, right = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(right)


def _spectrum(wave: Tensor, size: int, hop: int) -> Tensor:
    """[B,n] -> magnitude [B,size/2+1,frames], Hann window, no padding."""
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave.float(), size, hop, window=window, center=False, return_complex=True)
    power = spectrum.real.square() + spectrum.imag.square()
    return (power + 1e-9).sqrt()  # the root needs a slope at zero


@cache
def _filters(device: str) -> Tensor:
    return torch.from_numpy(slaney_filters(VOICE_BINS, VOICE_WINDOW_SAMPLES, VOICE_HZ)).to(device)


def side_by_side(rows: Tensor, lengths: Tensor, *, fill: float = 0.0) -> Tensor:
    """rows [n,C] of items behind one another, lengths int64 [B] on the CPU -> [longest,B,C].

    The same as pad_sequence of a split, whose backward pass copies everything once for every item:
    that took more than half of a step.
    """
    numbers = torch.arange(len(lengths)).repeat_interleave(lengths)
    places = torch.arange(len(numbers)) - (lengths.cumsum(0) - lengths)[numbers]
    padded = rows.new_full((int(lengths.max()), len(lengths), rows.shape[1]), fill)
    return padded.index_put((places.to(rows.device), numbers.to(rows.device)), rows)
