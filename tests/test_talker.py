"""What the Talker is given by the Thinker, and which ids it may say."""

import pytest
import torch
from tiny import GEOMETRIES, tiny_config, tiny_omni

from thinktalk.config import TalkerConfig
from thinktalk.model.talker import Talker, prompt_rows, usable_codec_ids

CPU = torch.device("cpu")
WIDTH = 64  # of the Thinker's states


def test_prompt_rows() -> None:
    """State plus embedding for text, the state alone at media."""
    hidden, embeddings = torch.full((4, WIDTH), 10.0), torch.full((4, WIDTH), 1.0)
    media = torch.tensor([False, True, True, False])
    assert prompt_rows(embeddings, hidden, media)[:, 0].tolist() == [11, 10, 10, 11]
    batch = prompt_rows(embeddings[None], hidden[None], media[None])
    assert torch.equal(batch[0], prompt_rows(embeddings, hidden, media))
    assert (embeddings == 1).all()  # the Thinker's own are not changed


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_start_rows(geometry: str) -> None:
    """The voice beside the pad id, the first reply row beside the start id."""
    talker = tiny_omni(geometry).talker
    table = talker.model.embed_tokens.weight
    voice, first = torch.randn(2, WIDTH)
    rows = talker.start_rows(voice, first)
    assert torch.equal(rows, torch.stack((voice + table[8292], first + table[8293])))
    batch = talker.start_rows(voice.expand(3, -1), first.expand(3, -1))
    assert batch.shape == (3, 2, WIDTH) and torch.equal(batch[1], rows)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_tracks_are_projected_and_decoded(geometry: str) -> None:
    talker: Talker = tiny_omni(geometry).talker
    tracks = torch.randn(2, 5, WIDTH)
    positions = torch.arange(5).expand(3, 2, -1)
    hidden = talker(tracks, positions=positions)
    projected = tracks @ talker.thinker_to_talker_proj.weight.T + talker.thinker_to_talker_proj.bias
    expected = talker.model(projected, positions=positions)
    torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
    assert hidden.shape == (2, 5, tiny_config(geometry).talker_config.hidden_size)


def test_logits_are_float32() -> None:
    config = tiny_config("7b").talker_config
    logits = Talker(config).bfloat16().logits(torch.ones(2, 3, config.hidden_size).bfloat16())
    assert logits.shape == (2, 3, 8448) and logits.dtype == torch.float32


def test_usable_codec_ids() -> None:
    """Ids with a code in the official DiT, and the two that end the speech."""
    usable = usable_codec_ids(TalkerConfig(), num_codes=8193, device=CPU)
    assert usable.shape == (8448,) and usable.dtype == torch.bool
    assert usable.nonzero().flatten().tolist() == [*range(8193), 8292, 8294]


def test_usable_codec_ids_of_a_small_codebook() -> None:
    config = TalkerConfig(
        vocab_size=1010, tts_codec_pad_token_id=1001, tts_codec_start_token_id=1002,
        tts_codec_end_token_id=1003, tts_codec_mask_token_id=1004,
    )  # fmt: skip
    usable = usable_codec_ids(config, num_codes=1000, device=CPU)
    assert usable.nonzero().flatten().tolist() == [*range(1000), 1001, 1003]
