"""The Thinker's task on packed conversations of any media, against independent computation."""

from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from data_samples import row_of, write_media
from tiny import build
from torch import Tensor

from thinktalk.model.thinker import Thinker
from thinktalk.train import stages
from thinktalk.train.data import Dataset
from thinktalk.train.drift import FILE, Drift
from thinktalk.train.examples import IGNORED, Example, ExampleMaker, maker_for
from thinktalk.train.losses import token_losses
from thinktalk.train.omni import OmniTask, choose_learners, wanted
from thinktalk.train.packing import causal_mask, collate
from thinktalk.train.reading import read
from thinktalk.train.rows import Row
from thinktalk.weights import LoadedModel


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return build(tmp_path_factory.mktemp("tiny"), "7b")


@pytest.fixture(scope="module")
def maker(model: LoadedModel) -> ExampleMaker:
    return replace(maker_for(model, speech="ignored"), system="")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Text, sound, picture, film with sound, and two turns with sound and picture."""
    media = write_media_of(tmp_path_factory)
    sound = {"type": "audio", "audio": str(media / "bell.wav")}
    picture = {"type": "image", "image": str(media / "cat.png")}
    film = {"type": "video", "video": str(media / "talking.mp4"), "max_pixels": 28 * 28 * 4}
    return [
        row_of("Hi", "Hello!"),
        row_of([sound, "what?"], "a bell"),
        row_of([picture, "what?"], "a cat, no doubt"),
        row_of([film], "tone"),
        row_of([sound], "ding", [picture, "and?"], "a cat"),
    ]


def write_media_of(factory: pytest.TempPathFactory) -> Path:
    folder = factory.mktemp("media")
    write_media(folder)
    return folder


@pytest.fixture(scope="module")
def examples(maker: ExampleMaker, rows: list[Row]) -> list[Example]:
    return [maker.make(row)[0] for row in rows]


def batch_of(examples: list[Example], *, packed: bool = True) -> dict[str, Any]:
    return collate(examples, samples=range(len(examples)), pad_id=0, packed=packed)


@torch.no_grad()
def alone(thinker: Thinker, example: Example) -> Tensor:
    """Losses of the learned tokens of one conversation, computed one by one with its own forward
    pass and the definition of cross-entropy."""
    batch = batch_of([example], packed=False)
    hidden = read(thinker, batch)[1][0]
    chosen = batch["labels"][0] != IGNORED
    scores = hidden[chosen] @ thinker.lm_head.weight.T
    right = scores.gather(1, batch["labels"][0, chosen, None])[:, 0]
    return scores.logsumexp(-1) - right


def test_a_packed_row_costs_what_its_samples_cost(
    model: LoadedModel, examples: list[Example]
) -> None:
    thinker = model.omni.thinker
    one_by_one = [alone(thinker, example) for example in examples]
    loss, figures = OmniTask(thinker).loss(batch_of(examples))
    assert loss.item() == pytest.approx(torch.cat(one_by_one).mean().item(), rel=1e-5)
    expected = {
        "text_alone": [0], "text_audio": [1, 3, 4], "text_image": [2, 4], "text_video": [3],
    }  # fmt: skip
    for name, members in expected.items():
        mean = torch.cat([one_by_one[number] for number in members]).mean()
        assert figures[name].item() == pytest.approx(mean.item(), rel=1e-5), name
    assert figures.keys() == {"text", "right", *expected}
    padded = OmniTask(thinker).loss(batch_of(examples, packed=False))[0]
    assert padded.item() == pytest.approx(loss.item(), rel=1e-5)
    assert OmniTask(thinker).weight(batch_of(examples)) == sum(map(len, one_by_one))


def test_packed_attention_is_the_masked_one(model: LoadedModel, examples: list[Example]) -> None:
    """States and gradients; the mask is made in another place."""
    thinker = model.omni.thinker
    batch = batch_of(examples[:3])
    embeddings, hidden = read(thinker, batch)
    mask = causal_mask(batch["segments"])
    masked = thinker(embeddings, positions=batch["positions"], mask=mask)
    real = batch["segments"][0] >= 0
    assert torch.allclose(hidden[0, real], masked[0, real], atol=1e-4)
    weight = thinker.model.layers[0].get_parameter("self_attn.k_proj.weight")
    ours, theirs = (
        torch.autograd.grad(states[0, real].square().sum(), weight, retain_graph=True)[0]
        for states in (hidden, masked)
    )
    assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * ours.abs().max().item())


def test_what_was_known_is_held(model: LoadedModel, examples: list[Example]) -> None:
    """The loss `moved` beside its definition, on the tokens that the Thinker knew at the start."""
    thinker, batch = deepcopy(model.omni.thinker), batch_of(examples[:2], packed=False)
    embeddings, then = read(thinker, batch)
    batch["labels"] = (then @ thinker.lm_head.weight.T).argmax(-1)  # it knows all of them
    batch["labels"][:, ::2] = IGNORED
    batch["labels"][:, 1::4] = 7  # but these, as a rule
    task = OmniTask(thinker, steady=3.0)
    loss, figures = task.loss(batch)
    assert figures["moved"] < 1e-9 and loss.item() == pytest.approx(figures["text"].item())
    with torch.no_grad():
        thinker.model.norm.weight.mul_(1.1)  # what the Talker reads grows with it
    loss, figures = task.loss(batch)
    known = batch["labels"] == (then @ thinker.lm_head.weight.T).argmax(-1)
    apart = (0.1 * then)[known].square().sum(-1) / (embeddings + then)[known].square().sum(-1)
    assert figures["moved"].item() == pytest.approx(apart.mean().item(), rel=1e-4)
    assert loss.item() == pytest.approx((figures["text"] + 3 * apart.mean()).item(), rel=1e-4)
    loss.backward()
    assert all(weight.grad is None for weight in task.companions[0].parameters())


def test_evaluation_counts_every_token_alike(model: LoadedModel, examples: list[Example]) -> None:
    thinker = model.omni.thinker
    batches = [batch_of(examples[:1]), batch_of(examples[1:])]
    with torch.no_grad():
        figures = OmniTask(thinker, held_out=batches).evaluate()
        whole = OmniTask(thinker).loss(batch_of(examples))[1]
    assert figures.keys() == whole.keys()
    for name, value in whole.items():
        assert figures[name] == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("count", [1, 6, 7, 20])
def test_losses_in_parts_are_those_of_the_whole(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    hidden = torch.randn(count, 5, generator=generator, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, requires_grad=True)
    labels = torch.randint(11, (count,), generator=generator)
    labels[::4] = IGNORED
    calls: list[int] = []

    def logits(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        return rows @ head.T

    losses, right = token_losses(hidden, labels, logits=logits, rows=6)
    gradients = torch.autograd.grad(losses.sum(), (hidden, head))
    scores = hidden @ head.T
    plain = F.cross_entropy(scores, labels, reduction="none")
    expected = torch.autograd.grad(plain.sum(), (hidden, head))
    assert torch.allclose(losses, plain) and not losses[::4].any()
    assert torch.equal(right, scores.argmax(-1) == labels)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradients, expected, strict=True))
    assert max(calls) <= 6
    assert len(calls) == (1 if count <= 6 else 2 * -(-count // 6))  # computed again going back


def test_what_was_rejected_is_not_learned(maker: ExampleMaker) -> None:
    pair = maker.make(row_of("2 + 2?", "4", rejected_response="5"))
    bad = maker.make(row_of("2 + 3?", "4", label=False))
    good = maker.make(row_of("2 + 3?", "5", label=True))
    batch = batch_of([*pair, *bad, *good])
    learned = batch["segments"][wanted(batch) != IGNORED]
    assert set(learned.tolist()) == {0, 3}


@pytest.mark.parametrize(
    ("stage", "learns"),
    [
        (stages.align_adapters(), ("thinker.audio_tower.proj.*", "thinker.visual.merger.*",
                                   "thinker.audio_tower.ln_post.*")),
        (stages.align_encoders(), ("thinker.audio_tower.*", "thinker.visual.*")),
        (stages.omni(), ("thinker.*",)),
        (stages.sft(), ("thinker.*",)),
        (replace(stages.sft(), frozen=("thinker.visual.*", "thinker.audio_tower.*")),
         ("thinker.model.*", "thinker.lm_head.*")),
    ],
)  # fmt: skip
def test_who_learns(model: LoadedModel, stage: stages.RowStage, learns: tuple[str, ...]) -> None:
    choose_learners(model.omni, stage)
    for name, weight in model.omni.named_parameters():
        expected = any(fnmatchcase(name, pattern) for pattern in learns)
        assert weight.requires_grad == expected, name


def test_a_pattern_that_fits_nothing_is_refused(model: LoadedModel) -> None:
    with pytest.raises(ValueError, match=r"no weight is called 'thinker.ears.*'"):
        choose_learners(model.omni, replace(stages.sft(), frozen=("thinker.ears.*",)))


def test_drift_is_the_change_of_what_the_talker_reads(
    maker: ExampleMaker, rows: list[Row], tmp_path: Path
) -> None:
    thinker = build(tmp_path / "tiny", "7b").omni.thinker
    dataset = Dataset([Listed(rows)], maker)
    drift = Drift(thinker, dataset, kept=tmp_path)
    assert drift.measure(thinker) == 0
    with torch.no_grad():
        thinker.model.norm.weight.mul_(1.1)
        thinker.model.embed_tokens.weight.mul_(1)
    moved = drift.measure(thinker)
    assert 0.02 < moved <= 0.1  # embeddings, a part of what is read, stay
    again = Drift(thinker, dataset, kept=tmp_path)  # a later leg
    assert again.measure(thinker) == moved
    fewer = Dataset([Listed(rows[:1])], maker)  # the data were exchanged: nothing to compare with
    assert Drift(thinker, fewer, kept=tmp_path).measure(thinker) == 0
    (tmp_path / FILE).unlink()
    assert Drift(thinker, dataset, kept=tmp_path).measure(thinker) == 0


class Listed:
    """Rows in a list, as a source."""

    name = "listed"

    def __init__(self, rows: list[Row]):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> Row:
        return self.rows[index]

    def place(self, index: int) -> str:
        return f"row {index}"

    def stamp(self) -> str:
        return self.name
