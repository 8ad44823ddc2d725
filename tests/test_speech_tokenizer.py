"""Codec ids are names of grid points, and training passes through the rounding to them."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from thinktalk.config import SpeechTokenizerConfig
from thinktalk.model.speech_tokenizer import SpeechTokenizer

LEVELS = [(8, 5, 5, 5), (3, 4), (7,)]
CONFIG = SpeechTokenizerConfig(hidden_size=16, encoder_layers=1, decoder_layers=1, cond_dim=6)


def tokenizer(levels: tuple[int, ...] = CONFIG.fsq_levels) -> SpeechTokenizer:
    torch.manual_seed(0)
    return SpeechTokenizer(replace(CONFIG, fsq_levels=levels))


def random_mel(frames: int) -> Tensor:
    return torch.randn(2, frames, 80, generator=torch.Generator().manual_seed(frames)) * 2.5 - 6


@pytest.mark.parametrize("levels", LEVELS)
def test_ids_and_grid_points(levels: tuple[int, ...]) -> None:
    """A bijection onto an even grid that spans [-1,1] in every dimension."""
    network = tokenizer(levels)
    ids = torch.arange(network.config.num_codes)
    grid = network.grid(ids)
    assert network.config.num_codes == torch.tensor(levels).prod() == len(grid.unique(dim=0))
    assert torch.equal(network.ids(grid), ids)
    for dimension, count in enumerate(levels):
        torch.testing.assert_close(grid[:, dimension].unique(), torch.linspace(-1, 1, count))
    assert grid[0].eq(-1).all() and grid[-1].eq(1).all()
    assert (grid[: levels[0], 1:] == -1).all(), "the first dimension is the lowest digit"


@pytest.mark.parametrize("levels", LEVELS)
def test_quantise(levels: tuple[int, ...]) -> None:
    """Onto the grid, never downwards where the latent rises, with every point within reach."""
    network = tokenizer(levels)
    latents = torch.linspace(-8, 8, 4001)[:, None].expand(-1, len(levels))
    points = network.quantise(latents)
    torch.testing.assert_close(points, network.grid(network.ids(points)))
    for dimension, count in enumerate(levels):
        line = points[:, dimension]
        assert (line.diff() > -1e-6).all() and len(line.mul(1000).round().unique()) == count
        near = (torch.linspace(-1, 1, count) - line[2000]).abs().min()
        assert near < 1e-6 and line[2000].abs() <= 1 / (count - 1) + 1e-6  # zero goes to the middle
    extremes = network.quantise(torch.tensor([[-1e4], [1e4]]).expand(-1, len(levels)))
    assert extremes.tolist() == [[-1] * len(levels), [1] * len(levels)]


@pytest.mark.parametrize("levels", LEVELS)
def test_gradient_passes_straight_through(levels: tuple[int, ...]) -> None:
    """It is that of the bounding alone, tanh, as if nothing were rounded."""
    network = tokenizer(levels)
    latents = torch.randn(50, len(levels), requires_grad=True)
    network.quantise(latents).sum().backward()
    half = (torch.tensor(levels) - 1) / 2
    shift = torch.tensor([0.5 if count % 2 == 0 else 0.0 for count in levels]) / half
    expected = 1 - (latents.detach() + shift.atanh()).tanh().square()
    torch.testing.assert_close(latents.grad, expected)


def test_quantise_in_float32() -> None:
    assert tokenizer().quantise(torch.zeros(1, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("frames", [1, 2, 3, 8, 9])
def test_lengths(frames: int) -> None:
    """50 codes a second of 100 frames; an odd last frame has a code of its own."""
    network = tokenizer()
    ids = network.encode(random_mel(frames))
    assert ids.shape == (2, -(-frames // 2)) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < 1000
    mel = network.decode(network.grid(ids), torch.randn(2, 6))
    assert mel.shape == (2, 2 * ids.shape[1], 80)


def test_an_odd_end_is_filled_with_the_mean() -> None:
    network, mel = tokenizer(), random_mel(7)
    filled = torch.cat((mel, torch.full((2, 1, 80), -6.0)), dim=1)
    torch.testing.assert_close(network.latents(mel), network.latents(filled))


def test_codes_follow_the_sound() -> None:
    """A code depends on the frames around it and on no other clip of the batch."""
    network = tokenizer()
    mel = random_mel(80)
    before, alone = network.latents(mel), network.latents(mel[:1])
    torch.testing.assert_close(alone, before[:1], rtol=1e-4, atol=1e-5)
    mel[:, 60:] += 3
    changed = (network.latents(mel) - before).abs().amax((0, 2)) > 1e-6
    assert changed[30:].all() and not changed[:20].any()


def test_everything_learns_and_the_voice_is_heard() -> None:
    network = tokenizer()
    cond = torch.randn(2, 6)
    quantised = network.quantise(network.latents(random_mel(12)))
    mel = network.decode(quantised, cond)
    mel.square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert not torch.allclose(mel, network.decode(quantised, cond.flip(0)), atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fsq_levels": (8, 2)}, r"fsq_levels is \[8, 2\]; use 3 or more of each"),
        ({"frames_per_code": 3}, "frames_per_code is 3; use an even number"),
    ],
)
def test_impossible_sizes(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SpeechTokenizerConfig(**options)
