"""The Thinker's states and text in, codec ids out, 50 a second.

Shapes: B rows, T positions, E width of the Thinker's states, V codec vocabulary.

Two tracks are added at every position: the reply track (a Thinker state plus the embedding of the
text token that it saw) and the codec track (the embedding of the previous codec id). Reference:
Qwen2.5-Omni report 2025, section 2.3; transformers modeling_qwen2_5_omni.py.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import TalkerConfig
from thinktalk.model.cache import KVCache, StepPlan
from thinktalk.model.decoder import Decoder
from thinktalk.model.layers import Packed


class Talker(nn.Module):
    def __init__(self, config: TalkerConfig):
        super().__init__()
        self.config = config
        self.thinker_to_talker_proj = nn.Linear(config.embedding_size, config.hidden_size)
        self.model = Decoder(config)
        self.codec_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        tracks: Tensor,
        *,
        positions: Tensor,
        cache: KVCache | None = None,
        plan: StepPlan | None = None,
        mask: Tensor | Packed | None = None,
    ) -> Tensor:
        """The two tracks' sum [B,T,E], positions [3,B,T] -> hidden states [B,T,hidden]."""
        x = self.thinker_to_talker_proj(tracks)
        return self.model(x, positions=positions, cache=cache, plan=plan, mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> float32 [..., V]."""
        return self.codec_head(hidden).float()

    def usable_head(self, *, num_codes: int) -> "UsableHead":
        """What of `logits` is left to choose from, see usable_codec_ids; a copy of the weights.

        In small networks the rows that never count are most of what a step reads.
        """
        weight = self.codec_head.weight
        usable = usable_codec_ids(self.config, num_codes=num_codes, device=weight.device)
        ids = usable.nonzero()[:, 0]
        return UsableHead(ids, weight.detach()[ids])

    def embed_codec(self, ids: Tensor) -> Tensor:
        """Codec ids int64 [...] -> [..., E]."""
        return self.model.embed_tokens(ids)

    def start_rows(self, voice_token: Tensor, first_reply: Tensor) -> Tensor:
        """The two positions behind the prompt [..., 2, E]: voice and first reply row.

        voice_token [..., E]: Thinker embedding of the voice's token; first_reply [..., E]: state
        plus embedding of the first text token. Their codec track holds the pad and the start id.
        """
        config, table = self.config, self.model.embed_tokens.weight
        codec = table[config.tts_codec_pad_token_id], table[config.tts_codec_start_token_id]
        return torch.stack((voice_token, first_reply), dim=-2) + torch.stack(codec)


class UsableHead(NamedTuple):
    ids: Tensor  # int64 [U] in ascending order: the codec id of every column of the logits
    weight: Tensor  # [U,hidden]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden] -> float32 [..., U]."""
        return F.linear(hidden, self.weight).float()


def prompt_rows(embeddings: Tensor, hidden: Tensor, media: Tensor) -> Tensor:
    """The reply track over the Thinker's prompt [..., T, E]: states plus text embeddings.

    embeddings and hidden [..., T, E]; media bool [..., T] marks the placeholders of audio, images
    and video, where the state stands alone.
    """
    return hidden + embeddings.masked_fill(media[..., None], 0.0)


def usable_codec_ids(config: TalkerConfig, *, num_codes: int, device: torch.device) -> Tensor:
    """bool [V]: the ids that may be sampled, i.e. codes the DiT knows, and the stop ids."""
    usable = torch.arange(config.vocab_size, device=device) < num_codes
    usable[list(config.stop_ids)] = True
    return usable


def opening_codec_ids(config: TalkerConfig, *, device: torch.device) -> Tensor:
    """bool [V]: the ids that the repetition penalty counts as said when a speech begins."""
    said = torch.zeros(config.vocab_size, dtype=torch.bool, device=device)
    ids = config.tts_codec_mask_token_id, config.tts_codec_pad_token_id
    said[[*ids, config.tts_codec_start_token_id]] = True
    return said
