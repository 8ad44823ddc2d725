"""Media take their places among the text, in order; clips and pictures do not know each other."""

from collections.abc import Callable

import pytest
import torch
from tiny import tiny_omni
from torch import Tensor

from thinktalk.model.audio import num_tokens
from thinktalk.model.thinker import Thinker

THINKER: Thinker = tiny_omni("7b").thinker.requires_grad_(False)
AUDIO, IMAGE, VIDEO = THINKER.config.media_token_ids
WIDTH = THINKER.config.text_config.hidden_size


def rows(count: int, value: float) -> Tensor:
    """Distinguishable encoder outputs [count,C]: value + index."""
    return (value + torch.arange(count))[:, None].expand(-1, WIDTH)


def test_placeholders_take_their_kinds_rows_in_order() -> None:
    ids = torch.tensor([7, AUDIO, IMAGE, AUDIO, 8, VIDEO, AUDIO, VIDEO, IMAGE, 9])
    found = THINKER.embed_prompt(ids, audio=rows(3, 100), images=rows(2, 200), videos=rows(2, 300))
    assert found[:, 0][[1, 3, 6, 2, 8, 5, 7]].tolist() == [100, 101, 102, 200, 201, 300, 301]
    assert (found[[1, 2, 3, 5, 6, 7, 8]].std(dim=1) == 0).all()
    assert torch.equal(found[[0, 4, 9]], THINKER.embed(torch.tensor([7, 8, 9])))


def test_text_alone() -> None:
    ids = torch.tensor([[1, 2], [3, 4]])
    found = THINKER.embed_prompt(ids, audio=None, images=None, videos=None)
    assert torch.equal(found, THINKER.model.embed_tokens.weight[ids])


def test_rows_take_the_type_of_the_text() -> None:
    """A float32 encoder under a bfloat16 decoder."""
    thinker = Thinker(THINKER.config).bfloat16()
    found = thinker.embed_prompt(torch.tensor([AUDIO]), audio=rows(1, 5), images=None, videos=None)
    assert found.dtype == torch.bfloat16 and (found == 5).all()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_other_numbers_of_rows(count: int) -> None:
    audio = rows(count, 0) if count else None
    with pytest.raises(AssertionError, match=f"{AUDIO}, 2, {count}"):
        THINKER.embed_prompt(torch.tensor([AUDIO, AUDIO]), audio=audio, images=None, videos=None)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def separately(encode: Callable, items: list) -> Tensor:
    return torch.cat([encode([item]) for item in items])


def test_clips_are_independent() -> None:
    """Any lengths together, below one window, of several and too short for a token."""
    torch.manual_seed(0)
    clips = [torch.randn(128, frames) for frames in (530, 7, 2, 200, 1, 33)]
    together = THINKER.encode_audio(clips)
    assert together is not None
    assert len(together) == sum(num_tokens(clip.shape[1]) for clip in clips)
    assert_near(together, separately(THINKER.encode_audio, clips))


def test_pictures_are_independent() -> None:
    torch.manual_seed(0)
    grids = [(1, 6, 8), (3, 4, 6), (1, 2, 2)]
    items = [
        (torch.randn(pairs * height * width, 1176), torch.tensor((pairs, height, width)))
        for pairs, height, width in grids
    ]
    together = THINKER.encode_patches(items)
    assert together is not None and together.shape == (12 + 18 + 1, WIDTH)
    assert_near(together, separately(THINKER.encode_patches, items))


def test_no_media() -> None:
    assert THINKER.encode_audio([]) is None and THINKER.encode_patches([]) is None


def test_states_and_logits() -> None:
    """Logits come from the states after the final norm, in float32, for the given rows alone."""
    thinker = Thinker(THINKER.config).bfloat16()
    positions = torch.arange(5).expand(3, 1, -1)
    hidden = thinker(thinker.embed(torch.arange(5)[None]), positions=positions)
    assert hidden.shape == (1, 5, WIDTH) and hidden.dtype == torch.bfloat16
    scale = hidden.float().square().mean(-1).sqrt()  # the norm's weights are still ones
    assert (scale - 1).abs().max() < 0.02
    logits = thinker.logits(hidden[:, -1])
    assert logits.shape == (1, 320) and logits.dtype == torch.float32
    assert torch.equal(logits, thinker.logits(hidden)[:, -1])
