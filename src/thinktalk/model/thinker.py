"""Text, sound and pictures in; text logits and the hidden states that the Talker speaks from.

Shapes: B rows, T tokens, C hidden size, V vocabulary; N audio windows, F mel frames, P patches.
Reference: Qwen2.5-Omni report 2025, section 2; transformers modeling_qwen2_5_omni.py.
"""

import torch
from torch import Tensor, nn

from thinktalk.config import ThinkerConfig
from thinktalk.model.audio import AudioEncoder, num_tokens, split_windows
from thinktalk.model.cache import KVCache, StepPlan
from thinktalk.model.decoder import Decoder
from thinktalk.model.layers import Packed
from thinktalk.model.vision import VisionEncoder


class Thinker(nn.Module):
    def __init__(self, config: ThinkerConfig):
        super().__init__()
        self.config = config
        text = config.text_config
        self.audio_tower = AudioEncoder(config.audio_config)
        self.visual = VisionEncoder(config.vision_config)
        self.model = Decoder(text)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)

    def forward(
        self,
        embeddings: Tensor,
        *,
        positions: Tensor,
        cache: KVCache | None = None,
        plan: StepPlan | None = None,
        mask: Tensor | Packed | None = None,
    ) -> Tensor:
        """embeddings [B,T,C], positions [3,B,T] -> hidden states after the final norm [B,T,C]."""
        return self.model(embeddings, positions=positions, cache=cache, plan=plan, mask=mask)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., C] -> float32 [..., V]; call it on the rows that are needed only."""
        return self.lm_head(hidden).float()

    def embed(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., C]."""
        return self.model.embed_tokens(ids)

    def embed_prompt(
        self, ids: Tensor, *, audio: Tensor | None, images: Tensor | None, videos: Tensor | None
    ) -> Tensor:
        """Embeddings [..., C] of ids with the placeholders replaced by encoder outputs [n, C].

        The k-th placeholder of a kind, in reading order, takes the k-th row of that kind.
        """
        embeddings = self.embed(ids)
        for token_id, rows in zip(
            self.config.media_token_ids, (audio, images, videos), strict=True
        ):
            places = ids == token_id
            count = 0 if rows is None else len(rows)
            assert int(places.sum()) == count, (token_id, int(places.sum()), count)
            if rows is not None:
                embeddings = embeddings.masked_scatter(places[..., None], rows.to(embeddings.dtype))
        return embeddings

    def encode_audio(self, mels: list[Tensor]) -> Tensor | None:
        """Clips as log-mel [128, F] each -> [tokens of all clips, C]; None without clips."""
        if not mels:
            return None
        parts = [split_windows(mel) for mel in mels]
        windows = torch.cat([windows for windows, _ in parts])
        lengths = torch.cat([lengths for _, lengths in parts])
        tokens, _ = self.audio_tower(windows.to(self.dtype), lengths)
        size = windows.shape[-1]
        frames = [min(size, n - k) for n in (m.shape[-1] for m in mels) for k in range(0, n, size)]
        # as the counts, which the host would have to wait for
        return torch.cat([row[: num_tokens(n)] for row, n in zip(tokens, frames, strict=True)])

    def encode_patches(self, items: list[tuple[Tensor, Tensor]]) -> Tensor | None:
        """Pictures or clips as (patches [P, patch_dim], grid [3] on the CPU, or the device has to
        wait) -> [tokens of all, C]."""
        if not items:
            return None
        patches = torch.cat([patches for patches, _ in items])
        grids = torch.stack([grid for _, grid in items])
        return self.visual(patches.to(self.dtype), grids)

    @property
    def dtype(self) -> torch.dtype:
        return self.lm_head.weight.dtype
