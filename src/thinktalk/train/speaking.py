"""A collated batch in; what the Talker makes of its spoken replies, beside what it shall say, out.

Batches are those of packing.collate. Shapes: B rows of T tokens, C width of the Thinker, K spoken
replies of L Talker positions, n positions where something shall be said, V classes of codec ids.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.model.talker import Talker, prompt_rows
from thinktalk.model.thinker import Thinker
from thinktalk.train.examples import IGNORED
from thinktalk.train.packing import learned_rows, talker_rows
from thinktalk.train.reading import read

RANDOM_IDS, NEAR_IDS = 0.06, 0.12  # shares of input ids replaced by any id, by a grid neighbour


class Thoughts(NamedTuple):
    """What the Thinker makes of a batch: its states after the final norm [B,T,C], and the rows that
    the Talker hears [B,T,C]."""

    hidden: Tensor
    rows: Tensor


class Said(NamedTuple):
    """The Talker where it shall say something.

    hidden [n,H]: its states; labels int64 [n]: the class of the next id, or IGNORED where n was
    only rounded up; replies int64 [n]: which reply.
    """

    hidden: Tensor
    labels: Tensor
    replies: Tensor


class VoiceRows(nn.Module):
    """What training adds to the embeddings of the voices' tokens, which the frozen Thinker owns.

    It begins at zero, so two voices that share an embedding part ways as far as they differ.
    """

    tokens: Tensor

    def __init__(self, tokens: Iterable[int], width: int):
        super().__init__()
        self.register_buffer("tokens", torch.tensor(sorted(set(tokens))), persistent=False)
        self.added = nn.Embedding(len(self.tokens), width)
        nn.init.zeros_(self.added.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Voice tokens int64 [K] -> [K,C]."""
        return self.added(torch.searchsorted(self.tokens, tokens.contiguous()))


class CodecClasses:
    """The ids that training tells apart: all codes, the stop ids, and one for all unused ids.

    The last is a class of many equal members, so that the full softmax is what was trained once
    `spread_unused` has given them all its weights. At an 8448 wide head this saves most of its
    time where there are 1000 codes.
    """

    def __init__(self, talker: Talker, *, num_codes: int):
        config = talker.config
        self.num_codes, self.stop_ids = num_codes, config.stop_ids
        self.ids = torch.tensor([*range(num_codes), *config.stop_ids, num_codes])
        self.sizes = torch.ones(len(self.ids))
        self.sizes[-1] = config.vocab_size - len(self.ids) + 1
        self.end = num_codes + config.stop_ids.index(config.tts_codec_end_token_id)
        self.end_id = config.tts_codec_end_token_id

    def logits(self, talker: Talker, hidden: Tensor) -> Tensor:
        """[..., H] -> float32 [..., V]; a softmax over them is that over all ids."""
        weight = talker.codec_head.weight[self.ids.to(hidden.device)]
        return F.linear(hidden, weight).float() + self.sizes.to(hidden.device).log()

    def of(self, ids: Tensor) -> Tensor:
        """Codes, end ids and IGNORED -> their classes."""
        return torch.where(ids == self.end_id, self.end, ids)


def think(thinker: Thinker, batch: dict[str, Any], *, deaf: float = 0.0) -> Thoughts:
    """What the Thinker makes of a batch; gradients flow where it has any.

    deaf: in this share of the samples (drawn from torch's generator) the Talker hears the words
    without the states. The states tell whole replies at once, so from them alone it would learn its
    replies by heart.
    """
    ids = batch["ids"]
    embeddings, hidden = read(thinker, batch)
    states = hidden
    if deaf:
        segments = batch["segments"]
        lots = torch.rand(len(ids), int(segments.max()) + 1, device=ids.device)
        states = hidden * (lots >= deaf).gather(1, segments.clamp(min=0))[..., None]
    media = torch.tensor(thinker.config.media_token_ids, device=ids.device)
    return Thoughts(hidden, prompt_rows(embeddings, states, torch.isin(ids, media)))


def speak(
    talker: Talker,
    thinker: Thinker,
    rows: Tensor,
    batch: dict[str, Any],
    *,
    classes: CodecClasses,
    voices: VoiceRows | None = None,
    noise: Sequence[int] | None = None,
) -> Said:
    """rows [B,T,C] as `think` gives them -> what the Talker makes of all spoken replies.

    voices: what is added to the voices' embeddings. noise: the levels of the quantiser, () where
    they are unknown; then some of the ids that the Talker hears itself say are wrong, as in a
    sampled reply (drawn from torch's generator).
    """
    device = rows.device
    names = ("ids", "segments", "positions", "spoken", "codes")
    on_cpu = {name: _to(batch[name], "cpu") for name in names}
    if not len(on_cpu["spoken"]):
        return _nothing_said(talker, rows, voices)
    plan = {k: v.to(device) for k, v in talker_rows(on_cpu, config=talker.config).items()}
    places, special = plan["places"], thinker.embed(plan["special_ids"]).to(rows.dtype)
    if voices is not None:
        special = special + F.pad(voices(plan["special_ids"][:, 0])[:, None], (0, 0, 0, 2))
    width = rows.shape[1]
    heard = rows[plan["rows"][:, None], places.clamp(max=width - 1)]  # [K,L,C]
    beside = (places - width).clamp(min=0)[..., None].expand_as(heard)
    reply = torch.where((places < width)[..., None], heard, special.gather(1, beside))
    ids = plan["codec_ids"]
    if noise is not None:
        is_code = plan["has_codec"] & (ids < classes.num_codes)
        ids = torch.where(is_code, misheard(ids, num_codes=classes.num_codes, levels=noise), ids)
    tracks = reply + talker.embed_codec(ids) * plan["has_codec"][..., None]
    hidden = talker(tracks, positions=plan["positions"])
    chosen, labels = learned_rows(plan["labels"])
    replies = chosen // places.shape[1]
    return Said(hidden.flatten(0, 1)[chosen], classes.of(labels), replies)


def misheard(ids: Tensor, *, num_codes: int, levels: Sequence[int]) -> Tensor:
    """Codes int64 [...] with some replaced by any other, and some by one that is off by one level.

    levels: of the quantiser, first digit lowest; () replaces by any other alone.
    """
    kind = torch.rand(ids.shape, device=ids.device)
    anything = torch.randint(num_codes, ids.shape, device=ids.device)
    near = ids
    if levels:
        sizes = torch.tensor(levels, device=ids.device)
        places = torch.cat((sizes.new_ones(1), sizes[:-1])).cumprod(0)
        axis = torch.randint(len(levels), ids.shape, device=ids.device)
        step = 2 * torch.randint(2, ids.shape, device=ids.device) - 1
        digit = ids // places[axis] % sizes[axis]
        moved = (digit + step).clamp(min=0).minimum(sizes[axis] - 1)
        near = ids + (moved - digit) * places[axis]
    out = torch.where(kind < NEAR_IDS, near, ids)
    return torch.where((kind >= NEAR_IDS) & (kind < NEAR_IDS + RANDOM_IDS), anything, out)


def num_said(batch: dict[str, Any]) -> float:
    """Ids that shall be said, the end of every reply included."""
    return float(sum(len(codes) + 1 for codes in batch["codes"]))


@torch.no_grad()
def spread_unused(talker: Talker, *, num_codes: int) -> None:
    """Gives every id that no code uses the weights of the class that stands for all of them."""
    weight = talker.codec_head.weight
    unused = torch.ones(len(weight), dtype=torch.bool)
    unused[[*range(num_codes), *talker.config.stop_ids]] = False
    weight[unused] = weight[num_codes].clone()


def _nothing_said(talker: Talker, rows: Tensor, voices: VoiceRows | None) -> Said:
    """The Talker runs all the same: every rank must use every network (see reading.embedded)."""
    zero = torch.zeros(1, 1, dtype=torch.int64, device=rows.device)
    track = rows[:1, :1] + 0 * talker.embed_codec(zero)
    if voices is not None:
        track = track + 0 * voices.added(zero)
    hidden = talker(track, positions=zero.expand(3, 1, 1))
    ignored = torch.full((1,), IGNORED, device=rows.device)
    return Said(hidden[0], ignored, zero[0])


def _to(value: Any, device: str) -> Any:
    return [v.to(device) for v in value] if isinstance(value, list) else value.to(device)
