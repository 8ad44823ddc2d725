"""DPO of the Talker: the loss against a hand-worked case, and what training with pairs does."""

import math
from pathlib import Path
from typing import Any

import pytest
import small_talk
import torch
import torch.nn.functional as F

from thinktalk.train.examples import maker_for
from thinktalk.train.journal import curve
from thinktalk.train.packing import collate
from thinktalk.train.preference import Pairs, PreferenceTask, Scores, margins, preference_loss
from thinktalk.train.shards import open_source
from thinktalk.train.speaking import speak, think
from thinktalk.train.tuning import train_on
from thinktalk.weights import LoadedModel, load

QUICK = {"steps": 12, "learning_rate": 1e-3, "warmup_steps": 2, "bfloat16": False}
PAIRS: list[dict[str, Any]] = [
    small_talk.coded("hi", "hey you", [5, 6, 7], "Chelsie") | {"rejected_codes": [900, 6]},
    small_talk.coded("ho", "hey me", [8, 9], "Ethan") | {"rejected_codes": [8, 8, 8, 8]},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return small_talk.build(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_talk.write_rows(tmp_path_factory.mktemp("rows") / "pairs.jsonl", PAIRS)


def pairs_batch(model: LoadedModel, rows: list[dict] = PAIRS, *, packed: bool = False) -> dict:
    maker, source = maker_for(model), open_source(rows)
    examples = [maker.make(source.row(number)) for number in range(len(rows))]
    samples = [number for number, pair in enumerate(examples) for _ in pair]
    flat = [example for pair in examples for example in pair]
    return collate(flat, samples=samples, pad_id=256, packed=packed)


def task_of(base: LoadedModel, **options: Any) -> PreferenceTask:
    omni = load(base.folder).omni
    omni.thinker.requires_grad_(False)
    return PreferenceTask(omni.talker, omni.thinker, num_codes=1000, **options)


def test_the_loss_by_hand() -> None:
    """Pair 1: the policy moved by +1 and -2 away from the reference, so 3; pair 2: by -1 and -1."""
    policy = Scores(torch.tensor([-10.0, -5.0]), torch.tensor([-14.0, -8.0]))
    reference = Scores(torch.tensor([-11.0, -4.0]), torch.tensor([-12.0, -7.0]))
    assert margins(policy, reference).tolist() == [3.0, 0.0]
    by_hand = (math.log(1 + math.exp(-0.5 * 3.0)) + math.log(2)) / 2
    loss = preference_loss(policy, reference, beta=0.5)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert by_hand == pytest.approx(0.447281, abs=1e-6)


def test_scores_are_sums_over_the_ids_of_one_reply(base: LoadedModel) -> None:
    """Each reply alone, without classes, against the batch of all."""
    task = task_of(base)
    batch = pairs_batch(base)
    with torch.no_grad():
        rows = think(task.thinker, batch).rows
        both = task._scores(task.talker, rows, batch)
        for side, found in (("chosen", both.chosen), ("rejected", both.rejected)):
            for number, row in enumerate(PAIRS):
                codes = row["messages"][1]["codes"] if side == "chosen" else row["rejected_codes"]
                reply = row["messages"][1]
                alone = small_talk.coded(
                    row["messages"][0]["content"], reply["content"], codes, reply["speaker"]
                )
                one = pairs_batch(base, [alone])
                said = speak(
                    task.talker, task.thinker, think(task.thinker, one).rows, one,
                    classes=task.classes,
                )  # fmt: skip
                logits = task.classes.logits(task.talker, said.hidden)
                total = -F.cross_entropy(logits, said.labels, ignore_index=-100, reduction="sum")
                assert found[number].item() == pytest.approx(total.item(), rel=1e-4)
        packed = pairs_batch(base, packed=True)
        again = task._scores(task.talker, think(task.thinker, packed).rows, packed)
    assert torch.allclose(again.chosen, both.chosen, atol=1e-3)


def test_it_begins_at_no_margin_and_moves_only_the_talker(base: LoadedModel) -> None:
    task = task_of(base)
    loss, figures = task.loss(pairs_batch(base))
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert figures["margin"].item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert task.talker.codec_head.weight.grad is not None
    assert all(weight.grad is None for weight in task.reference.parameters())


def test_the_control_never_looks_at_the_rejected_replies(base: LoadedModel) -> None:
    task = task_of(base, plain=True)
    others = [row | {"rejected_codes": [1, 2, 3]} for row in PAIRS]
    losses = [task.loss(pairs_batch(base, rows))[0].item() for rows in (PAIRS, others)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    real = task_of(base, anchor=0.5)
    loss, figures = real.loss(pairs_batch(base))
    assert loss.item() == pytest.approx(math.log(2) + 0.5 * figures["codec"].item(), rel=1e-5)


def test_training_raises_the_margin(base: LoadedModel, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    held = small_talk.write_rows(tmp_path / "held.jsonl", PAIRS[:1])
    changes = QUICK | {"steps": 24}
    assert train_on(
        "talker-dpo", model=base.folder, data=[data], held=[held], out=out, changes=changes
    )
    last = [row for row in curve(out / "talker-dpo") if "test_margin" in row][-1]
    assert last["test_margin"] > 1 and last["test_preference"] < math.log(2)
    before, after = (m.omni.state_dict() for m in (base, load(out / "model")))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"talker"}


def test_rows_that_are_no_pairs_are_told(base: LoadedModel, tmp_path: Path) -> None:
    rows = [small_talk.coded("hi", "hey you", [5, 6], "Chelsie")]
    data = small_talk.write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=r"(?s)rows.jsonl.*it is no pair; add rejected_codes"):
        train_on("talker-dpo", model=base.folder, data=[data], out=tmp_path / "run", changes=QUICK)
    assert len(Pairs(open_source(PAIRS))) == 2


def test_rows_without_speech_are_left_out(
    base: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ask, reply = ({"role": role, "content": "hi"} for role in ("user", "assistant"))
    silent = {"messages": [ask, reply]}
    for rows in ([silent], [silent] * 5 + PAIRS):
        small_talk.write_rows(tmp_path / f"{len(rows)}.jsonl", rows)
    with pytest.raises(ValueError, match=r"no reply in the 1 rows \(.*1.jsonl:1 ...\) is spoken"):
        train_on(
            "talker-dpo", model=base.folder, data=[tmp_path / "1.jsonl"], out=tmp_path / "none"
        )
    data, out = [tmp_path / "7.jsonl"], tmp_path / "run"
    assert train_on("talker-dpo", model=base.folder, data=data, out=out, changes=QUICK)
    (told,) = (message for message in caplog.messages if "left out" in message)
    assert told.startswith("left out 5 of 7 rows, without a spoken reply: ")
