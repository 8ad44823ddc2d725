"""What the stage that trains the DiT asks for."""

import numpy as np
import torch
from test_parallel import dit_task

from thinktalk.model.layers import split_heads


def test_loss_is_flow_error_and_a_little_of_queries_and_keys() -> None:
    task = dit_task()
    batch = task.batch(np.random.default_rng(0), 2)
    loss, figures = task.loss(batch)
    again, _ = task.loss(batch)
    assert torch.equal(loss, again)  # nothing is left over from the first
    torch.testing.assert_close(loss, figures["velocity"] + task.CALM * figures["scores"])
    calm, task.CALM = task.CALM, 0.0
    flow, _ = task.loss(batch)
    torch.testing.assert_close(flow, figures["velocity"])
    task.CALM = calm


def test_that_little_keeps_attention_scores_small() -> None:
    task = dit_task()
    batch = task.batch(np.random.default_rng(0), 2)
    inputs = torch.randn(64, 60)

    def score() -> float:
        attention = task.module.transformer_blocks[0].attn
        q, k = (split_heads(part(inputs)[None], 30) for part in (attention.to_q, attention.to_k))
        return (q @ k.transpose(-1, -2)).abs().max().item()

    before, optimizer = score(), torch.optim.SGD(task.module.parameters(), lr=1e-2)
    task.CALM = 10.0
    for _ in range(5):
        optimizer.zero_grad()
        task.loss(batch)[0].backward()
        optimizer.step()
    assert score() < before
