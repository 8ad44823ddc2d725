"""The first stage of seeing: what pictures are to be called, and that only the eye learns it."""

import numpy as np
import pytest
import torch

from thinktalk.config import VisionConfig
from thinktalk.generate import load_processor, load_tokenizer
from thinktalk.model.vision import VisionEncoder
from thinktalk.playroom.talk import Case
from thinktalk.train import seeing
from thinktalk.train.seeing import SeeingTask, named
from thinktalk.weights import find, load


def task() -> SeeingTask:
    model = load(find("spark"), dtype=torch.float32)
    thinker = model.omni.thinker
    torch.manual_seed(0)
    thinker.visual = VisionEncoder(
        VisionConfig(
            depth=2,
            hidden_size=64,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=256,
            fullatt_block_indexes=(1,),
        )
    )
    return SeeingTask(thinker, load_tokenizer(model.folder), load_processor(model.folder))


@pytest.mark.parametrize(
    ("name", "shown", "words"),
    [
        ("shape", ("red", "circle"), [" red", " circle"]),
        ("how many", ("blue", "cross", "three"), [" three", " blue", " crosses"]),
        ("how many", ("blue", "cross", "one"), [" one", " blue", " cross"]),
        ("how many", ("blue", "shape", "two"), [" two", " blue", " shapes"]),
        ("where", ("blue", "star", "left"), [" blue", " star", " left"]),
        ("digit", ("0",), [" zero"]),
        ("read", ("hello",), ["e", "h", "l", "o"]),
    ],
)
def test_descriptions(name: str, shown: tuple[str, ...], words: list[str]) -> None:
    assert named(Case(name, None, (), "", shown=shown)) == words


def test_colours_are_learned_and_only_by_the_eye(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls below that of knowing how often each word is said."""
    monkeypatch.setattr(seeing, "TASK_SHARES", {"shape": 1.0})
    learner = task()
    before = {n: w.clone() for n, w in learner.thinker.named_parameters()}
    weights = [w for w in learner.module.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=3e-3)
    losses = []
    for step in range(150):
        optimizer.zero_grad()
        loss, _ = learner.loss(learner.batch(np.random.default_rng(step), 16))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        losses.append(loss.item())
    frequencies = (np.log(2 * 8) + np.log(2 * 6)) / 2
    assert np.mean(losses[-10:]) < frequencies - 0.2 < losses[0] - 2
    changed = {n for n, w in learner.thinker.named_parameters() if not torch.equal(w, before[n])}
    assert changed and all(name.startswith("visual.") for name in changed)


def test_a_picture_counts_as_right_if_its_words_come_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = task()
    monkeypatch.setattr(seeing, "TASK_SHARES", {"digit": 1.0})
    monkeypatch.setattr(seeing, "NUM_TEST_PICTURES", 4)

    def scores(batch: dict) -> torch.Tensor:
        """All are called by their names but the last, which is called zero, or four if it is."""
        table = torch.zeros(4, len(learner.thinker.model.embed_tokens.weight))
        table[batch["pictures"], batch["words"]] = 1.0
        zero, four = (learner.tokenizer.encode(word)[0] for word in (" zero", " four"))
        table[3, four if batch["words"][3] == zero else zero] = 2.0
        return table

    monkeypatch.setattr(learner, "_scores", scores)
    assert learner.evaluate() == {"digit": 0.75}


def test_most_pictures_to_learn_from_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = task()
    for name in ("shape", "where", "digit"):
        monkeypatch.setattr(seeing, "TASK_SHARES", {name: 1.0})
        grids = learner.batch(np.random.default_rng(0), 40)["grids"].tolist()
        others = [grid for grid in grids if grid != [1, 4, 4]]  # patches of 14 pixels
        assert 4 < len(others) < 20
        assert all(min(height, width) >= 8 for _, height, width in others)
    monkeypatch.setattr(seeing, "TASK_SHARES", {"read": 1.0})
    grids = learner.batch(np.random.default_rng(0), 40)["grids"]
    assert 0.5 < (grids[:, 1] <= 6).float().mean() < 0.9
