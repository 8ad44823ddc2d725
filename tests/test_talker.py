"""What the Talker is given by the Thinker, and which ids it may say."""

import pytest
import torch
from tiny import GEOMETRIES, tiny_config, tiny_omni

from thinktalk.config import TalkerConfig
from thinktalk.model.talker import Talker, prompt_rows, usable_codec_ids
from thinktalk.options import GREEDY, OFFICIAL_SPEECH, Sampling
from thinktalk.sampling import choose

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


@pytest.mark.parametrize("sampling", [GREEDY, OFFICIAL_SPEECH, Sampling(temperature=1.0)])
def test_the_usable_head_chooses_the_same_ids(sampling: Sampling) -> None:
    """As all logits with the unusable ones masked; 1000 codes and the two ids that end."""
    torch.manual_seed(0)
    talker, rows = Talker(tiny_config("7b").talker_config), 200
    hidden, uniform = 3 * torch.randn(rows, talker.config.hidden_size), torch.rand(rows)
    seen = torch.rand(rows, 8448) < 0.1
    usable = usable_codec_ids(talker.config, num_codes=1000, device=CPU)
    head = talker.usable_head(num_codes=1000)
    assert head.ids.tolist() == usable.nonzero().flatten().tolist() and len(head.ids) == 1002
    assert not head.weight.requires_grad
    logits = talker.logits(hidden)
    torch.testing.assert_close(head.logits(hidden), logits[:, usable])
    whole = choose(logits, sampling, seen=seen, usable=usable, uniform=uniform)
    part = choose(head.logits(hidden), sampling, seen=seen[:, head.ids], uniform=uniform)
    assert torch.equal(head.ids[part], whole) and len(whole.unique()) > 50
