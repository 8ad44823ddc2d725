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


def test_that_little_keeps_attention_scores_small() -> None:
    task = dit_task()
    batch = task.batch(np.random.default_rng(0), 2)
    inputs = torch.randn(64, 60, generator=torch.Generator().manual_seed(0))

    def score() -> float:
        parts = (task.module.get_submodule(f"transformer_blocks.0.attn.to_{x}") for x in "qk")
        q, k = (split_heads(part(inputs)[None], 30) for part in parts)
        return (q @ k.transpose(-1, -2)).abs().max().item()

    weights = task.module.transformer_blocks.parameters()
    before, optimizer = score(), torch.optim.Adam(weights, lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        loss, figures = task.loss(batch)
        (loss - figures["velocity"]).backward()  # that little alone
        optimizer.step()
    assert score() < before
