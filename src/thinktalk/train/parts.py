"""A medium of a conversation in; its ids and features out, decoded once and then from the cache."""

from __future__ import annotations

from typing import Any

import numpy as np

from thinktalk.config import ThinkerConfig
from thinktalk.media.chat import Medium
from thinktalk.media.image import Processor, levels_of, normalise
from thinktalk.media.prompt import Prompt, assemble
from thinktalk.media.tokenizer import Tokenizer
from thinktalk.train.features import Arrays, FeatureCache
from thinktalk.train.lengths import num_tokens
from thinktalk.train.shards import content

# Part of every key: raise it when the same media shall give other arrays.
FEATURES_VERSION = 1


class MediaReader:
    """Reads media as a checkpoint's processor takes them."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        config: ThinkerConfig,
        processor: Processor,
        audio_in_video: bool,
        *,
        cache: FeatureCache | None = None,
    ):
        self.tokenizer, self.config, self.processor = tokenizer, config, processor
        self.audio_in_video, self.cache = audio_in_video, cache

    def part(self, medium: Medium) -> Prompt:
        """The part of a prompt that a medium is, between its markers."""
        if self.cache is None:
            return self._decoded(medium)
        options = dict(medium.options)
        sound = options.pop("sound", None)
        settings = self.settings(), sorted(options.items()), medium.kind, FEATURES_VERSION
        key = self.cache.digest(repr(settings), medium.source, sound)
        arrays = self.cache.get(
            key, lambda: _to_arrays(self._decoded(medium), processor=self.processor)
        )
        return _from_arrays(arrays, processor=self.processor)

    def count(self, medium: Medium) -> int:
        """How many ids that is, from the headers of the medium if they tell."""
        found = num_tokens(
            _readable(medium),
            config=self.config,
            processor=self.processor,
            audio_in_video=self.audio_in_video,
        )
        return len(self.part(medium).ids) if found is None else found

    def settings(self) -> str:
        """All that the parts depend on besides the media."""
        config = self.config
        marks = config.media_token_ids, config.audio_start_token_id, config.audio_end_token_id
        timing = config.position_id_per_seconds, config.seconds_per_chunk
        context = config.text_config.max_position_embeddings
        return repr((self.processor, marks, timing, context, self.audio_in_video))

    def _decoded(self, medium: Medium) -> Prompt:
        return assemble(
            [_readable(medium)],
            tokenizer=self.tokenizer,
            config=self.config,
            processor=self.processor,
            audio_in_video=self.audio_in_video,
        )


def _readable(medium: Medium) -> Medium:
    """The medium with the contents of a shard's members in their place."""
    options: dict[str, Any] = dict(medium.options)
    if "sound" in options:
        options["sound"] = content(options["sound"])
    return Medium(medium.kind, content(medium.source), options)


def _to_arrays(part: Prompt, *, processor: Processor) -> Arrays:
    """A medium's part as arrays; patches as the 8-bit values they were made of."""
    arrays: Arrays = {"ids": part.ids}
    if part.mels:
        arrays["mel"] = part.mels[0]
    for patches, grid in part.images:
        both = levels_of(patches, processor=processor).reshape(len(patches), 3, 2, -1)
        arrays |= {"image": both[:, :, 0], "grid": np.array(grid)}  # both frames are the same
    for patches, grid, seconds in part.videos:
        levels = levels_of(patches, processor=processor)
        arrays |= {"video": levels, "grid": np.array(grid), "seconds": np.array([seconds])}
    return arrays


def _from_arrays(arrays: Arrays, *, processor: Processor) -> Prompt:
    """The inverse of _to_arrays, bit for bit."""
    prompt = Prompt(arrays["ids"], mels=[arrays["mel"]] if "mel" in arrays else [])
    rows, columns = (int(side) for side in arrays["grid"][1:]) if "grid" in arrays else (0, 0)
    if "image" in arrays:
        levels = np.concatenate((arrays["image"], arrays["image"]), axis=2)
        prompt.images.append((normalise(levels, processor=processor), (1, rows, columns)))
    if "video" in arrays:
        grid = (int(arrays["grid"][0]), rows, columns)
        patches = normalise(arrays["video"], processor=processor)
        prompt.videos.append((patches, grid, float(arrays["seconds"][0])))
        prompt.video_has_audio.append("mel" in arrays)
    return prompt
