"""Whether the model binds sound to sight by time: `when` as it is, and with altered time ids.

The sound's ids are shifted by one colour: the answer should move to that colour, although neither
a token nor its place in the prompt has changed. Then all of the film's ids are shuffled: what
remains is what the model guesses, or takes from the order of the tokens.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from thinktalk.config import ThinkerConfig
from thinktalk.eval.metrics import exact
from thinktalk.eval.tasks import KEPT_MISSES, Row, Tick, percent, reply
from thinktalk.generate import Rearrange
from thinktalk.playroom import cases
from thinktalk.playroom.films import Film


def when(model: Any, *, count: int, seed: int, tick: Tick) -> Iterator[Row]:
    """Typed questions about a colour at a sound, three times: as it is, shifted, shuffled."""
    config: ThinkerConfig = model.omni.config.thinker_config
    right, moved, stayed, guessed, chances, misses = [], [], [], [], [], []
    for number in range(count):
        example = cases.make(seed=seed, split="test", number=number, task="when", asked="typed")
        case, (film,) = example.case, example.films
        rng = np.random.default_rng([seed, number])
        shift_s, colour = neighbour(film, rng)
        moved_answer = f"the {case.shown[0]} was {colour}."
        shifted, shuffled = shift(config, seconds=shift_s), shuffle(config, rng)
        plain, other, lost = (
            reply(model, example.messages, case=case, positions=positions).text
            for positions in (None, shifted, shuffled)
        )
        right.append(exact(plain, case.answer))
        moved.append(exact(other, moved_answer))
        stayed.append(exact(other, case.answer))
        guessed.append(exact(lost, case.answer))
        chances.append(1 / len(film.states))
        if not right[-1]:
            misses.append({"asked": case.question, "wanted": case.answer, "said": plain})
        tick()
    yield Row("when", "as it is", count, percent(right), misses=misses[:KEPT_MISSES])
    yield Row("when", "sound's ids shifted: answer moves", count, percent(moved))
    yield Row("when", "sound's ids shifted: answer stays", count, percent(stayed))
    chance = f"time ids shuffled (chance: {100 * float(np.mean(chances)):.0f} %)"
    yield Row("when", chance, count, percent(guessed))


def neighbour(film: Film, rng: np.random.Generator) -> tuple[float, str]:
    """By how many seconds the event would have to be later to fall into the middle of the colour
    before or after its own, and that colour."""
    onset_s = film.events[0][0]
    starts = [start for start, _, _ in film.states]
    ends = [*starts[1:], film.seconds]
    own = max(number for number, start in enumerate(starts) if start <= onset_s)
    near = [number for number in (own - 1, own + 1) if 0 <= number < len(starts)]
    chosen = near[rng.integers(len(near))]
    return (starts[chosen] + ends[chosen]) / 2 - onset_s, film.states[chosen][1]


def shift(config: ThinkerConfig, *, seconds: float) -> Rearrange:
    """Every sound is heard so much later (or earlier); what leaves the clip comes in again at its
    other end, so that no id is new. For prompts with one sound."""
    steps = round(seconds * config.position_id_per_seconds)

    def rearrange(ids: Tensor, positions: Tensor) -> Tensor:
        heard = ids == config.audio_token_index
        positions = positions.clone()
        positions[:, heard] = positions[:, heard].roll(-steps, dims=1)
        return positions

    return rearrange


def shuffle(config: ThinkerConfig, rng: np.random.Generator) -> Rearrange:
    """Every moment of the film and of its sound gets the time of another one, at random. For
    prompts with one film."""

    def rearrange(ids: Tensor, positions: Tensor) -> Tensor:
        positions = positions.clone()
        heard = ids == config.audio_token_index
        positions[:, heard] = positions[:, heard][:, _order(rng, int(heard.sum()))]
        seen = ids == config.video_token_index
        instants, place = positions[0, seen].unique(return_inverse=True)
        positions[0, seen] = instants[_order(rng, len(instants))][place]
        return positions

    return rearrange


def _order(rng: np.random.Generator, count: int) -> Tensor:
    return torch.from_numpy(rng.permutation(count))
