"""Choosing ids: cases worked by hand, the reference's own processors, and the keyed draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from thinktalk.options import GREEDY, OFFICIAL_SPEECH, Sampling
from thinktalk.sampling import choose, draw

PROBABILITIES = torch.tensor([0.1, 0.4, 0.2, 0.3])
LOGITS = PROBABILITIES.log()[None]
NOTHING_SEEN = torch.zeros(1, 4, dtype=torch.bool)
ANY = Sampling(temperature=1.0)


def pick(logits: Tensor, sampling: Sampling, uniform: float = 0.0, **options) -> int:
    seen = options.pop("seen", torch.zeros_like(logits, dtype=torch.bool))
    [token] = choose(logits, sampling, seen=seen, uniform=torch.tensor([uniform]), **options)
    return int(token)


def distribution(logits: Tensor, sampling: Sampling, **options) -> Tensor:
    """The probability of every id [V], from the ids for evenly spread draws."""
    steps = 4000
    rows = logits.expand(steps, -1)
    options = {k: v.expand(steps, -1) if k == "seen" else v for k, v in options.items()}
    seen = options.pop("seen", torch.zeros_like(rows, dtype=torch.bool))
    uniform = (torch.arange(steps) + 0.5) / steps
    ids = choose(rows, sampling, seen=seen, uniform=uniform, **options)
    return ids.bincount(minlength=logits.shape[-1]) / steps


def near(values: list[float]):
    return pytest.approx(values, abs=1e-3)


# ---- worked by hand


def test_greedy() -> None:
    assert [pick(LOGITS, GREEDY, u) for u in (0.0, 0.99)] == [1, 1]


def test_draws_follow_the_probabilities() -> None:
    """The most probable id takes the lowest draws, and so on."""
    assert [pick(LOGITS, ANY, u) for u in (0.0, 0.39, 0.41, 0.69, 0.71, 0.89, 0.91, 0.99999)] == [
        *(1, 1, 3, 3, 2, 2, 0, 0)
    ]
    assert distribution(LOGITS, ANY).tolist() == near([0.1, 0.4, 0.2, 0.3])


def test_temperature() -> None:
    squared = PROBABILITIES**2 / (PROBABILITIES**2).sum()
    cold = Sampling(temperature=0.5)
    assert distribution(LOGITS, cold).tolist() == near(squared.tolist())


def test_top_k() -> None:
    two = Sampling(temperature=1.0, top_k=2)
    assert distribution(LOGITS, two).tolist() == near([0, 4 / 7, 0, 3 / 7])
    assert distribution(LOGITS, Sampling(temperature=1.0, top_k=9)).tolist() == near(
        PROBABILITIES.tolist()
    )


def test_top_k_keeps_ties() -> None:
    tied = torch.tensor([[1.0, 2.0, 1.0, 0.0]])
    kept = distribution(tied, Sampling(temperature=1.0, top_k=2)) > 0
    assert kept.tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("top_p", "expected"),
    [
        (0.01, [0, 1, 0, 0]),  # one id always stays
        (0.39, [0, 1, 0, 0]),
        (0.41, [0, 4 / 7, 0, 3 / 7]),  # the id that crosses the limit stays
        (0.69, [0, 4 / 7, 0, 3 / 7]),
        (0.71, [0, 4 / 9, 2 / 9, 3 / 9]),
        (0.91, [0.1, 0.4, 0.2, 0.3]),
    ],
)
def test_top_p(top_p: float, expected: list[float]) -> None:
    sampling = Sampling(temperature=1.0, top_p=top_p)
    assert distribution(LOGITS, sampling).tolist() == near(expected)


def test_top_p_counts_what_top_k_left() -> None:
    """Of 0.4 and 0.3 the first is 57 %: below 0.6, so the second stays, too."""
    sampling = Sampling(temperature=1.0, top_k=2, top_p=0.6)
    assert (distribution(LOGITS, sampling) > 0).tolist() == [False, True, False, True]
    sampling = Sampling(temperature=1.0, top_k=2, top_p=0.57)
    assert (distribution(LOGITS, sampling) > 0).tolist() == [False, True, False, False]


def test_repetition_penalty() -> None:
    """Divides what is above zero, multiplies what is below: less likely both times; once only."""
    logits = torch.tensor([[2.0, 1.9, -1.0, -1.1]])
    seen = torch.tensor([[True, False, True, False]])
    penalty = Sampling(repetition_penalty=1.1)
    assert pick(logits, GREEDY, seen=seen) == 0
    assert pick(logits, penalty, seen=seen) == 1
    assert pick(logits[:, 2:], GREEDY, seen=seen[:, 2:]) == 0
    assert pick(logits[:, 2:], Sampling(repetition_penalty=1.2), seen=seen[:, 2:]) == 1


def test_unusable_ids() -> None:
    usable = torch.tensor([True, False, True, True])
    assert pick(LOGITS, GREEDY, usable=usable) == 3
    assert distribution(LOGITS, ANY, usable=usable).tolist() == near([1 / 6, 0, 2 / 6, 3 / 6])
    two = Sampling(temperature=1.0, top_k=2)  # counts usable ids only
    assert distribution(LOGITS, two, usable=usable).tolist() == near([0, 0, 0.4, 0.6])


def test_unusable_ids_of_a_row() -> None:
    usable = torch.tensor([[True, False, True, True], [False, True, False, False]])
    ids = choose(
        LOGITS.expand(2, -1), GREEDY,
        seen=NOTHING_SEEN.expand(2, -1), usable=usable, uniform=torch.zeros(2),
    )  # fmt: skip
    assert ids.tolist() == [3, 1]


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24, 1.0])
def test_draws_at_the_border_are_usable(uniform: float) -> None:
    """1.0 comes up, too, where a draw just below it is rounded."""
    usable = torch.tensor([False, False, True, False])
    assert pick(LOGITS, ANY, uniform, usable=usable) == 2


def test_the_official_defaults() -> None:
    assert GREEDY.temperature == 0 and GREEDY.repetition_penalty == 1
    assert Sampling(0.9, 40, 0.8, 1.05) == OFFICIAL_SPEECH


def test_half_precision_logits() -> None:
    """Chosen in float32: bfloat16 sums of many probabilities would lose the small ones."""
    flat = torch.zeros(1, 3000, dtype=torch.bfloat16)
    assert pick(flat, ANY, 0.5) == 1500


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, r"temperature is -0\.1; use 0 \(greedy\) or more"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"top_k": -1}, r"top_k is -1; use 0 \(off\) or more"),
        ({"top_p": 0.0}, r"top_p is 0\.0; use a value above 0"),
        ({"top_p": 1.1}, r"top_p is 1\.1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0; 1 turns it off"),
        ({"repetition_penalty": math.nan}, "repetition_penalty is nan"),
    ],
)
def test_impossible_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


# ---- batches and draws


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_a_row_does_not_know_its_batch(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 50, generator=generator)
    seen = torch.rand(4, 50, generator=generator) < 0.3
    uniform = torch.rand(4, generator=generator)
    together = choose(logits, OFFICIAL_SPEECH, seen=seen, uniform=uniform)
    for row in range(4):
        one = slice(row, row + 1)
        alone = choose(logits[one], OFFICIAL_SPEECH, seen=seen[one], uniform=uniform[one])
        assert alone == together[row]


def test_draws_are_keyed() -> None:
    """The same on every machine and for ever: recorded replies depend on it."""
    assert draw(0, "speech", 0) == pytest.approx(0.35187087473874973)
    keys = [(s, stage, step) for s in (0, 1) for stage in ("text", "speech") for step in range(3)]
    values = [draw(*key) for key in keys]
    assert values == [draw(*key) for key in keys] and len(set(values)) == len(keys)


def test_draws_are_even() -> None:
    values = torch.tensor([draw(7, "text", step) for step in range(4000)])
    assert values.min() >= 0 and values.max() < 1
    shares = torch.histc(values, bins=10, min=0, max=1) / 4000
    assert (shares - 0.1).abs().max() < 0.02  # four standard deviations


# ---- the reference


@pytest.mark.reference
@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        Sampling(repetition_penalty=1.05),
        ANY,
        OFFICIAL_SPEECH,
        Sampling(temperature=1.3, top_k=5),
        Sampling(temperature=0.7, top_p=0.6, repetition_penalty=1.3),
        Sampling(temperature=2.0, top_k=20, top_p=0.3, repetition_penalty=0.9),
    ],
)
@pytest.mark.parametrize("seed", range(5))
def test_reference(sampling: Sampling, seed: int) -> None:
    """The distribution of transformers' processors in the order in which generate applies them."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(1, 60, generator=generator)
    history = torch.randint(0, 60, (1, 25), generator=generator)
    unusable = [3, 17, 40]
    expected = reference_distribution(logits, history, sampling, unusable)
    seen, usable = torch.zeros(1, 60, dtype=torch.bool), torch.ones(60, dtype=torch.bool)
    seen[0, history[0]], usable[unusable] = True, False
    if sampling.temperature == 0:
        assert pick(logits, sampling, seen=seen, usable=usable) == int(expected.argmax())
        return
    found = distribution(logits, sampling, seen=seen, usable=usable)
    assert (found - expected).abs().max() < 1e-3
    assert not found[expected == 0].any()


def reference_distribution(
    logits: Tensor, history: Tensor, sampling: Sampling, unusable: list[int]
) -> Tensor:
    """What generate itself puts together from its options, in its own order: [V]."""
    from reference import transformers

    chosen = sampling.temperature > 0
    options = transformers.GenerationConfig(
        repetition_penalty=sampling.repetition_penalty,
        suppress_tokens=unusable,
        do_sample=chosen,
        temperature=sampling.temperature if chosen else 1.0,
        top_k=sampling.top_k if chosen else 0,
        top_p=sampling.top_p,
    )
    config = transformers.Qwen2Config(
        vocab_size=60, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1,
    )  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    processors = model._get_logits_processor(
        generation_config=options, input_ids_seq_length=history.shape[1], device="cpu"
    )
    return processors(history, logits.clone()).softmax(-1)[0]
