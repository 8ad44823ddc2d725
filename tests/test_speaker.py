"""The speaker encoder equals the reference."""

from typing import Any, cast

import pytest
import torch
from recorded_voice import REF_MEL, TENSORS, assert_within_their_error, recorded_network

from thinktalk.config import DiTConfig
from thinktalk.model.speaker import Ecapa


def encoder(dtype: torch.dtype) -> Ecapa:
    return recorded_network(dtype).code2wav_dit_model.input_embed.spk_encoder


def test_reference_float32() -> None:
    vectors, expected = encoder(torch.float32)(REF_MEL), TENSORS["speaker.float32"]
    assert vectors.shape == expected.shape
    assert (vectors - expected).abs().max() < 1e-6 * expected.abs().max()
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the rows are two voices


def test_reference_bfloat16() -> None:
    assert_within_their_error(encoder(torch.bfloat16)(REF_MEL.bfloat16()), "speaker")


def test_silence_has_no_length() -> None:
    """The branch without a voice hears zeros: one vector, however long they last."""
    short, long = (encoder(torch.float32)(torch.zeros(1, frames, 80)) for frames in (12, 400))
    assert torch.allclose(short, long, atol=1e-5)


def test_more_groups_than_two() -> None:
    """Of the published networks every group but the first has one neighbour; here they chain."""
    torch.manual_seed(0)
    config = DiTConfig(enc_channels=(16, 16, 16, 16, 48), enc_res2net_scale=4, enc_dim=8)
    tdnn, middle, *_ = cast(list[Any], list(Ecapa(config).blocks))
    block = middle.res2net_block
    x = tdnn(torch.randn(1, 80, 30))
    first, second, third, fourth = x.chunk(4, dim=1)
    second = block.blocks[0](second)
    third = block.blocks[1](third + second)
    fourth = block.blocks[2](fourth + third)
    assert torch.equal(block(x), torch.cat((first, second, third, fourth), dim=1))


def test_channels_must_add_up() -> None:
    with pytest.raises(ValueError, match="enc_channels"):
        Ecapa(DiTConfig(enc_channels=(16, 16, 16, 16, 64)))
