"""The vocoder equals the reference; its activation equals the convolutions it replaces."""

import math

import pytest
import torch
import torch.nn.functional as F
from recorded_voice import TENSORS, assert_within_their_error, recorded_network
from torch import Tensor

from thinktalk.config import BigVGANConfig
from thinktalk.model.bigvgan import (
    BLOCK,
    Activation,
    Bands,
    BigVGAN,
    low_pass_taps,
    resampling_bands,
    scaled,
)

MEL = TENSORS["mel"][:1, :, :20]
SMALL = BigVGANConfig(
    upsample_initial_channel=16, upsample_rates=(3, 2), upsample_kernel_sizes=(7, 4),
    resblock_kernel_sizes=(3, 5), resblock_dilation_sizes=((1, 3), (1, 2)),
)  # fmt: skip


def test_reference_float32() -> None:
    wave, expected = recorded_network().code2wav_bigvgan_model(MEL), TENSORS["vocoded.float32"]
    assert wave.shape == (1, 20 * 240)
    assert 0.02 < expected.std() < 0.5
    assert (wave[0] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_reference_bfloat16() -> None:
    vocoder = recorded_network(torch.bfloat16).code2wav_bigvgan_model
    assert_within_their_error(vocoder(MEL.bfloat16())[0], "vocoded")


def test_filter_is_the_references() -> None:
    window = torch.kaiser_window(12, beta=4.663800127934911, periodic=False, dtype=torch.float64)
    times = torch.arange(12, dtype=torch.float64) - 5.5
    taps = 0.5 * window * torch.sinc(0.5 * times)
    assert torch.allclose(
        torch.tensor(low_pass_taps(), dtype=torch.float64), taps / taps.sum(), atol=1e-12
    )


def by_convolutions(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """The reference's form: transposed convolution, SnakeBeta, strided convolution."""
    channels = x.shape[1]
    taps = torch.tensor(low_pass_taps(), dtype=x.dtype).expand(channels, 1, -1)
    u = F.pad(x, (5, 5), mode="replicate")
    u = 2 * F.conv_transpose1d(u, taps, stride=2, groups=channels)[..., 15:-15]
    alpha, beta = alpha.exp()[:, None], beta.exp()[:, None]
    u = u + (u * alpha).sin().square() / (beta + 1e-9)
    return F.conv1d(F.pad(u, (5, 6), mode="replicate"), taps, stride=2, groups=channels)


def activation(alpha: Tensor, beta: Tensor) -> tuple[Activation, Bands]:
    built = Activation(len(alpha)).to(alpha.dtype)
    built.act.alpha.data, built.act.beta.data = alpha, beta
    return built, resampling_bands()


LENGTHS = (1, 2, 3, 5, 8, *range(BLOCK - 2, BLOCK + 8), 2 * BLOCK, 2 * BLOCK + 1, 200)


@pytest.mark.parametrize("length", LENGTHS)
def test_activation_equals_convolutions(length: int) -> None:
    torch.manual_seed(length)
    x, alpha, beta = torch.randn(2, 3, length), 0.5 * torch.randn(3), 0.5 * torch.randn(3)
    act, bands = activation(alpha, beta)
    expected = by_convolutions(x, alpha, beta)
    with torch.no_grad():  # which takes another way
        heard = act(x, bands)
    for ours in (act(x, bands), heard):
        assert ours.shape == expected.shape == x.shape
        assert (ours - expected).abs().max() < 1e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("length", (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2, 3 * BLOCK))
def test_activation_gradients_equal_those_of_the_convolutions(length: int) -> None:
    torch.manual_seed(length)
    drawn = (
        torch.randn(2, 3, length, dtype=torch.float64),
        *(0.5 * torch.randn(2, 3, dtype=torch.float64)),
    )
    x, alpha, beta = (value.clone().requires_grad_() for value in drawn)
    weights = torch.randn_like(x)
    (by_convolutions(x, alpha, beta) * weights).sum().backward()
    act, _ = activation(*drawn[1:])
    bands = Bands(*(band.double() for band in resampling_bands()))  # rounded once to float32
    ours = drawn[0].clone().requires_grad_()
    (act(ours, bands) * weights).sum().backward()
    pairs = ((ours, x), (act.act.alpha, alpha), (act.act.beta, beta))
    for got, expected in pairs:
        assert got.grad is not None and expected.grad is not None
        assert (got.grad - expected.grad).abs().max() < 1e-6 * expected.grad.abs().max()


def test_activation_gradients_are_derivatives() -> None:
    torch.manual_seed(0)
    act, bands = activation(*(0.5 * torch.randn(2, 2, dtype=torch.float64)))
    bands = Bands(*(band.double() for band in bands))
    x = torch.randn(1, 2, BLOCK + 3, dtype=torch.float64, requires_grad=True)

    def run(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return torch.func.functional_call(act, {"act.alpha": alpha, "act.beta": beta}, (x, bands))

    assert torch.autograd.gradcheck(run, (x, act.act.alpha, act.act.beta))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
def test_training_under_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    vocoder = BigVGAN(SMALL)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        wave = vocoder(torch.randn(2, 80, 9))
    wave.float().square().mean().backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().max() > 0, name


def test_scaled_mel() -> None:
    """Zero is full scale less 20 dB; below -115 dB and above +20 dB nothing more is heard."""
    mel = torch.tensor([0.0, math.log(10), -115 / 20 * math.log(10), -100.0, 100.0])
    expected = torch.tensor([1 - 40 / 115, 1.0, -1.0, -1.0, 1.0])
    assert torch.allclose(scaled(mel), expected, atol=1e-6)


def test_context_of_the_published_networks() -> None:
    with torch.device("meta"):
        assert BigVGAN(BigVGANConfig()).context_frames == 34


@pytest.mark.parametrize("config", (SMALL, recorded_network().config.bigvgan_config))
def test_context_is_the_reach_of_a_frame(config: BigVGANConfig) -> None:
    """By derivatives: from exactly that far, and no further, do mel frames change the samples."""
    torch.manual_seed(0)
    vocoder = BigVGAN(config).double()
    context, rate = vocoder.context_frames, config.samples_per_frame
    mel = torch.randn(1, 80, 2 * context + 5, dtype=torch.float64, requires_grad=True)
    middle = context + 2
    vocoder(mel)[0, middle * rate : (middle + 1) * rate].sum().backward()
    assert mel.grad is not None
    reached = mel.grad[0].abs().amax(0).nonzero().flatten() - middle
    assert max(-int(reached.min()), int(reached.max())) == context


def test_a_window_with_context_equals_the_whole() -> None:
    vocoder = recorded_network().code2wav_bigvgan_model
    context, rate = vocoder.context_frames, vocoder.config.samples_per_frame
    mel = TENSORS["mel"][:1, :, : 2 * context + 6]
    mel = torch.cat((mel, mel.flip(-1)), dim=-1)
    first, last = context + 3, context + 9
    part = vocoder(mel[..., first - context : last + context])
    whole = vocoder(mel)[:, first * rate : last * rate]
    error = (part[:, context * rate : (context + last - first) * rate] - whole).abs().max()
    assert error < 1e-6 * whole.abs().max()
