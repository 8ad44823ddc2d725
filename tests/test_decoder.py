"""The decoder under Thinker and Talker: order, rotary axes, grouped heads."""

import pytest
import torch
from tiny import GEOMETRIES, tiny_config, tiny_omni
from torch import Tensor

from thinktalk.config import DecoderConfig
from thinktalk.model.decoder import Decoder

DECODERS = {
    "thinker": tiny_omni("7b").thinker.model,
    "talker 7b": tiny_omni("7b").talker.model,
    "talker 3b": tiny_omni("3b").talker.model,
}


def run(decoder: Decoder, positions: Tensor, *, seed: int = 0) -> Tensor:
    """States [T,C] of random input at positions [3,T]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, positions.shape[1], decoder.config.hidden_size, generator=generator)
    with torch.no_grad():
        return decoder(x, positions=positions[:, None])[0]


@pytest.mark.parametrize("name", DECODERS)
def test_positions_are_relative(name: str) -> None:
    positions = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(0))
    moved = positions + torch.tensor([[7], [0], [31]])
    ours, theirs = run(DECODERS[name], positions), run(DECODERS[name], moved)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", DECODERS)
def test_every_axis_counts(name: str, axis: int) -> None:
    """But for the width in the Talker of the 3B model, whose rotary positions have no such axis."""
    positions = torch.arange(12).expand(3, -1).clone()
    before = run(DECODERS[name], positions)
    positions[axis, 6:] += 3
    difference = (run(DECODERS[name], positions) - before).abs().amax(1)
    assert not difference[:6].any()
    assert difference[6:].any() == (name != "talker 3b" or axis != 2)


def test_frequencies_follow_their_axis() -> None:
    """Of the official head: 64 frequencies, 16 turn with the time, 24 with the row, 24 with the
    column, all with the same base."""
    config = DecoderConfig(
        vocab_size=1, hidden_size=256, intermediate_size=1, num_hidden_layers=0,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    decoder = Decoder(config)
    positions = torch.tensor([3, 50, 700])[:, None, None]
    cos, sin = decoder.rotation(positions, dtype=torch.float64)
    frequencies = 1e6 ** -(torch.arange(64, dtype=torch.float64) / 64)
    expected = frequencies * torch.tensor([3.0] * 16 + [50.0] * 24 + [700.0] * 24)
    angle = torch.cat((expected, expected))
    assert cos.shape == sin.shape == (1, 1, 1, 128)
    torch.testing.assert_close(cos.flatten(), angle.cos(), rtol=0, atol=1e-4)
    torch.testing.assert_close(sin.flatten(), angle.sin(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_widths(geometry: str) -> None:
    """The Talker's table is as wide as the Thinker's states, its heads may be wider than it."""
    config = tiny_config(geometry).talker_config
    shapes = {name: tuple(t.shape) for name, t in Decoder(config).state_dict().items()}
    assert shapes["embed_tokens.weight"] == (8448, 64)
    assert shapes["layers.0.self_attn.q_proj.weight"] == (64, config.hidden_size)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (32, config.hidden_size)
    assert shapes["layers.0.self_attn.o_proj.weight"] == (config.hidden_size, 64)


def test_wrong_shapes() -> None:
    decoder = DECODERS["thinker"]
    with pytest.raises(AssertionError, match="64"):
        decoder(torch.zeros(1, 2, 32), positions=torch.zeros(3, 1, 2))
    with pytest.raises(AssertionError, match="3, 1, 4"):
        decoder(torch.zeros(1, 2, 64), positions=torch.zeros(3, 1, 4))
