"""What a stage trained goes back into its checkpoint by the official names."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from thinktalk.parallel import join
from thinktalk.train.job import Job, put_back
from thinktalk.weights import load

HEAD = "thinker.lm_head.weight"


@pytest.fixture
def job(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> Job:
    folder = tiny_checkpoint("7b")
    model = load(folder, dtype=torch.float32)
    return Job(model=model, base=str(folder), sources=(), ranks=join(), out=tmp_path)


def test_trained_weights_go_back_and_heads_stay_behind(job: Job) -> None:
    before = {name: tensor.clone() for name, tensor in job.model.omni.state_dict().items()}
    model = put_back(job, {HEAD: before[HEAD] + 1, "blank.weight": torch.ones(2)})
    after = model.omni.state_dict()
    assert torch.equal(after[HEAD], before[HEAD] + 1)
    assert all(torch.equal(after[name], before[name]) for name in before if name != HEAD)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({HEAD: torch.ones(2, 3)}, "thinker.lm_head.weight have other shapes"),
        ({"blank.weight": torch.ones(2)}, "no name is common"),
    ],
)
def test_weights_of_another_model_are_refused(
    job: Job, weights: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=f"{message}; give the checkpoint that the run began"):
        put_back(job, weights)
