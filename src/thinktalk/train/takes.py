"""Several takes of one spoken reply, drawn side by side: each as generate.talk draws it alone.

Shapes: R takes, T positions of the prompt, E width of the tracks, V codec vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from thinktalk.generate import Thought, hand_over, text_track
from thinktalk.model.cache import BLOCK_POSITIONS, KVCache, StepPlan
from thinktalk.model.talker import opening_codec_ids, usable_codec_ids
from thinktalk.options import Sampling
from thinktalk.sampling import choose, draw
from thinktalk.weights import Voice


def takes(
    thought: Thought, *, voice: Voice, sampling: Sampling, seeds: Sequence[int], max_codec_ids: int
) -> list[list[int]]:
    """The codec ids of a reply, once for every seed; without the stop ids."""
    omni, config, device = thought.omni, thought.omni.config.talker_config, thought.ids.device
    talker, rows = omni.talker, len(seeds)
    if not thought.reply_rows:
        return [[] for _ in seeds]
    tracks, positions = hand_over(thought, voice=voice)
    reply, pad = text_track(thought)
    length, after = len(tracks), int(positions.max()) + 1
    blocks = -(-(length + max_codec_ids) // BLOCK_POSITIONS)
    cache = KVCache(config, num_blocks=rows * blocks, dtype=tracks.dtype, device=device)
    tables = torch.arange(rows * blocks, device=device).view(rows, blocks)

    def step(tracks: Tensor, positions: Tensor, *, start: int) -> Tensor:
        """tracks [R,n,E] at positions [3,n] -> the last hidden states [R,H]."""
        num_tokens = tracks.shape[1]
        plan = StepPlan(
            tables,
            torch.full((rows,), start, device=device),
            torch.full((rows,), num_tokens, device=device),
            start + num_tokens,
        )
        where = positions.to(device)[:, None].expand(3, rows, num_tokens)
        return talker(tracks, positions=where, cache=cache, plan=plan)[:, -1]

    num_codes = omni.config.token2wav_config.dit_config.num_embeds
    # to sort thousands of ids that may not be said would take most of the time
    usable = usable_codec_ids(config, num_codes=num_codes, device=device).nonzero()[:, 0]
    seen = opening_codec_ids(config, device=device)[usable].repeat(rows, 1)
    found: list[list[int]] = [[] for _ in seeds]
    speaking = set(range(rows))
    hidden = step(tracks.expand(rows, -1, -1), positions, start=0)
    for number in range(max_codec_ids):
        uniform = torch.tensor([draw(seed, "speech", number) for seed in seeds], device=device)
        logits = talker.logits(hidden)[:, usable]
        chosen = choose(logits, sampling, seen=seen, uniform=uniform)
        seen.scatter_(1, chosen[:, None], True)
        tokens = usable[chosen]
        ids = tokens.tolist()
        speaking = {take for take in speaking if ids[take] not in config.stop_ids}
        for take in speaking:
            found[take].append(ids[take])
        if not speaking or number + 1 == max_codec_ids:
            break
        beside = reply[number] if number < len(reply) else pad
        place = torch.full((3, 1), after + number)
        hidden = step((talker.embed_codec(tokens) + beside)[:, None], place, start=length + number)
    return found
