"""Losses against independent computations and hand-worked cases."""

import numpy as np
import torch

from thinktalk.media import mel as media_mel
from thinktalk.train.losses import flow_matching_pair, side_by_side, spectral_loss, voice_mel


def chirp(seconds: float = 0.5) -> np.ndarray:
    time = np.arange(int(24_000 * seconds)) / 24_000
    noise = np.random.default_rng(0).standard_normal(len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 900 * time) * time) + 0.01 * noise).astype(np.float32)


def test_voice_mel_equals_the_numpy_one() -> None:
    wave = chirp()
    ours = voice_mel(torch.from_numpy(wave)[None])[0].numpy()
    reference = media_mel.voice_mel(wave)
    assert ours.shape == reference.shape == (50, 80)
    loud = reference > np.log(1e-3)  # the slope guard under the root lifts the quietest bins
    assert np.abs(ours - reference)[loud].max() < 1e-2
    assert np.abs(ours - reference).mean() < 2e-2


def test_spectral_loss_is_zero_for_the_same_wave_and_grows_with_pitch_error() -> None:
    time = torch.arange(9600) / 24_000
    target = (2 * torch.pi * 200 * time).sin()[None]
    near, far = ((2 * torch.pi * hz * time).sin()[None] for hz in (204, 300))
    assert spectral_loss(target, target) == 0
    assert 0 < spectral_loss(near, target) < spectral_loss(far, target)


def test_spectral_loss_has_a_gradient_at_silence() -> None:
    silent = torch.zeros(1, 9600, requires_grad=True)
    spectral_loss(silent, torch.from_numpy(chirp(0.4))[None]).backward()
    assert silent.grad is not None
    assert torch.isfinite(silent.grad).all()


def test_flow_matching_path_runs_straight_from_noise_to_mel() -> None:
    mel, noise = torch.full((3, 2, 80), 5.0), torch.full((3, 2, 80), 1.0)
    noisy, velocity = flow_matching_pair(mel, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert noisy[:, 0, 0].tolist() == [1.0, 2.0, 5.0]
    assert velocity.unique().tolist() == [4.0]


def test_side_by_side_is_padding_of_a_split() -> None:
    rows = torch.randn(9, 5, requires_grad=True)
    lengths = torch.tensor([4, 0, 3, 2])
    theirs = torch.nn.utils.rnn.pad_sequence(list(rows.split(lengths.tolist())))
    ours = side_by_side(rows, lengths)
    assert torch.equal(ours, theirs)
    weights = torch.randn(theirs.shape)
    (gradient,) = torch.autograd.grad((ours * weights).sum(), rows)
    (wanted,) = torch.autograd.grad((theirs * weights).sum(), rows)
    assert torch.equal(gradient, wanted)
    assert side_by_side(rows, lengths, fill=-1.0)[3, 2].eq(-1).all()
