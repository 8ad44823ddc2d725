"""Steps on fixed buffers: padding, bounds, and a whole engine that says what it says without them.

What CUDA does with them is tested where there is a GPU (marked so): here a replay is a call.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from live_stage import SHORT, Stage, load, push
from omni_cases import sound
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import thinktalk
from thinktalk import Sampling
from thinktalk.live import graphs
from thinktalk.live.graphs import Graphs, up_to
from thinktalk.weights import LoadedModel

CPU = torch.device("cpu")
SIZES = (2, 4)
WORDS = ["Hello", "What is this?", "Tell me more about it, please."]


def doubled(seen: list[Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A step that keeps the tensors it was given: rows of numbers, and two rows of values each."""

    def step(numbers: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        seen[:] = [numbers, values]
        return numbers * 2, values * 2

    return step


def inputs(rows: int, width: int = 3) -> tuple[Tensor, Tensor]:
    return torch.arange(1, rows * width + 1).view(rows, width), torch.rand(2 * rows, 5)


def test_rows_are_padded_and_buffers_stay() -> None:
    runner, seen = Graphs(CPU), []
    addresses = set()
    for rows in (3, 4, 3):
        numbers, values = inputs(rows)
        out = runner.run("double", doubled(seen), (numbers, values), rows=rows, sizes=SIZES)
        assert torch.equal(out[0], numbers * 2) and torch.equal(out[1], values * 2)
        assert seen[0].shape == (4, 3) and seen[1].shape == (8, 5)
        assert not seen[0][rows:].any(), "numbers of padding rows are 0"
        addresses.add((seen[0].data_ptr(), seen[1].data_ptr()))
    assert len(addresses) == 1
    assert runner.counters == {"recorded": 1, "replays": 3}


def test_what_came_out_stays() -> None:
    runner = Graphs(CPU)
    kept = torch.zeros(2, 1)

    def step(values: Tensor) -> tuple[Tensor]:
        kept.copy_(values)
        return (kept,)

    first = runner.run("keep", step, (torch.ones(2, 1),), rows=2, sizes=SIZES)
    runner.run("keep", step, (torch.full((2, 1), 7.0),), rows=2, sizes=SIZES)
    assert first[0].tolist() == [[1], [1]]


def test_every_shape_has_its_own(monkeypatch) -> None:
    """And what is beyond the bounds runs as it is, unpadded."""
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 3)
    runner, seen = Graphs(CPU), []

    def shape(name: str, rows: int, width: int = 3) -> tuple[int, ...]:
        given = inputs(rows, width)
        out = runner.run(name, doubled(seen), given, rows=rows, sizes=SIZES)
        assert torch.equal(out[0], given[0] * 2)
        return tuple(seen[0].shape)

    assert [shape("a", 1), shape("a", 3), shape("a", 1, 4)] == [(2, 3), (4, 3), (2, 4)]
    assert shape("a", 5) == (5, 3), "no size holds so many"
    assert shape("b", 1) == (1, 3), "no more graphs"
    assert shape("a", 2) == (2, 3)
    assert runner.counters == {"recorded": 3, "replays": 4, "eager_steps": 2}


def test_sizes() -> None:
    assert [up_to(n, (1, 2, 8)) for n in (1, 2, 3, 8, 9)] == [1, 2, 8, 8, None]
    for sizes in (graphs.STEP_ROWS, graphs.VOICE_ROWS, graphs.TABLE_BLOCKS):
        assert sorted(sizes) == list(sizes)


# ---- a whole engine


def talk(model: LoadedModel, **options) -> tuple[list, dict[str, float]]:
    """Three sessions with different pasts, two turns each; what they said."""
    stage = Stage(model, max_sessions=3, **options)
    sessions = [
        stage.open(**{**SHORT, "max_codec_ids": 40}, seed=0),
        stage.open(seed=1, text=Sampling(temperature=0.8), system="Short."),
        stage.open(seed=2, speak=False, max_text_tokens=60),
    ]
    said = []
    for turn in range(2):
        for n, session in enumerate(sessions):
            push(session, sound(0.5 + n))
            session.push_text(WORDS[n])
            session.commit()
            stage.run(3 * turn)  # beside each other, but not in step
        stage.run()
        said += [stage.reply(session) for session in sessions]
    steps = stage.engine.passes.steps
    stage.close()
    return said, dict(steps.graphs.counters) if steps.graphs else {}


@pytest.mark.parametrize("name", ["7b", "3b"])
def test_an_engine_on_buffers_says_the_same(
    tiny_checkpoint: Callable[[str], Path], name: str
) -> None:
    model = load(tiny_checkpoint(name))
    plain, none = talk(model)
    padded, counters = talk(model, graphs=True)
    assert not none
    assert counters["replays"] > 200 and 8 < counters["recorded"] < 40
    assert "eager_steps" not in counters
    for one, other in zip(plain, padded, strict=True):
        assert one.ids == other.ids and one.text == other.text
        assert one.wave.shape == other.wave.shape
        if len(one.wave):
            error = np.abs(one.wave - other.wave).max() / np.abs(one.wave).max()
            assert error <= 1e-4, error


class NoWaiting(TorchDispatchMode):
    """Fails where a GPU would wait for the host, or the host for it: numbers are read, shapes
    depend on values, or (with `recorded`, where even this is forbidden) tensors come from lists."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")
    UPLOADS = ("lift_fresh", "_to_copy", "where.Scalar", "where.ScalarOther", "where.ScalarSelf")

    def __init__(self, *, recorded: bool):
        super().__init__()
        self.forbidden = self.WAITS + (self.UPLOADS if recorded else ())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        assert not any(name == f or name.startswith(f + ".") for f in self.forbidden), name
        masks = name == "index.Tensor" and [i for i in args[1] if i is not None]
        assert not any(i.dtype == torch.bool for i in masks or []), "a mask as an index"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(tiny_checkpoint: Callable[[str], Path], monkeypatch) -> None:
    """Neither inside of the steps, which could not be recorded then, nor where they are called."""
    talk(load(tiny_checkpoint("7b")))  # what is done once is done
    stage = Stage(load(tiny_checkpoint("7b")), max_sessions=2, graphs=True)
    passes, count = stage.engine.passes, 0
    assert passes.steps.graphs is not None
    run, think, speak = passes.steps.graphs.run, passes.think, passes.speak

    def watched_run(name, step, inputs, **options) -> tuple[Tensor, ...]:
        def watched(*buffers: Tensor) -> tuple[Tensor, ...]:
            nonlocal count
            count += 1
            with NoWaiting(recorded=True):
                return step(*buffers)

        return run(name, watched, inputs, **options)

    def watched_pass(call) -> Callable:
        def watched(work):
            with NoWaiting(recorded=False):
                return call(work)

        return watched

    monkeypatch.setattr(passes.steps.graphs, "run", watched_run)
    monkeypatch.setattr(passes, "think", watched_pass(think))
    monkeypatch.setattr(passes, "speak", watched_pass(speak))
    for seed in range(2):
        session = stage.open(seed=seed, max_codec_ids=40, text=Sampling(temperature=seed / 2))
        session.push_text("What?")
        session.commit()
    stage.run()
    assert count > 30
    stage.close()


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["7b", "3b"])
def test_graphs_on_the_gpu(tiny_checkpoint: Callable[[str], Path], name: str) -> None:
    """Recorded and replayed by CUDA, which is the default there: nothing falls back, and ids are
    those of the steps as they are."""
    model = thinktalk.load(tiny_checkpoint(name), device="cuda")
    plain, none = talk(model, graphs=False)
    recorded, counters = talk(model)
    assert not none and "eager_steps" not in counters and counters["recorded"] > 8
    assert [said.ids for said in plain] == [said.ids for said in recorded]


@pytest.mark.gpu
def test_a_step_that_cannot_be_recorded_runs_as_it_is(caplog) -> None:
    device = torch.device("cuda")
    runner = Graphs(device)

    def waits(values: Tensor) -> tuple[Tensor]:
        return (values * float(values.sum()),)

    for _ in range(2):
        [out] = runner.run("waits", waits, (torch.ones(2, device=device),), rows=2, sizes=SIZES)
        assert out.tolist() == [2, 2]
    assert runner.counters == {"eager_steps": 2}
