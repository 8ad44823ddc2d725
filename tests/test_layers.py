"""Attention in its two ways, norm and rotary positions, against their formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from thinktalk.model.layers import (
    RMSNorm,
    SwiGLU,
    WideLinear,
    apply_rotary,
    attend,
    join_heads,
    rotary_frequencies,
    split_heads,
)


def by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Head by head; mask [B,T,S]."""
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        shared = head * k.shape[1] // q.shape[1]
        scores = q[:, head] @ k[:, shared].mT / math.sqrt(q.shape[-1])
        out[:, head] = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, shared]
    return out


@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("num_keys", [1, 2, 6], ids=lambda n: f"{n} key heads")
@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_attend(training: bool, num_keys: int, kind: str) -> None:
    """Training on a CPU takes another way to the same numbers and gradients."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 5, 8, generator=generator)
    k, v = torch.randn(2, 2, num_keys, 5, 8, generator=generator)
    mask = torch.ones(2, 5, 5, dtype=torch.bool)
    if kind == "causal":
        mask = mask.tril()
    if kind == "mask":
        mask = torch.rand(2, 5, 5, generator=generator) < 0.5
        mask |= torch.eye(5, dtype=torch.bool)
    inputs = [x.requires_grad_(training) for x in (q, k, v)]
    out = attend(*inputs, mask=mask[:, None] if kind == "mask" else None, causal=kind == "causal")
    expected = by_hand(q, k, v, mask)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    if training:
        weights = torch.randn(out.shape, generator=generator)
        for ours, theirs in zip(
            torch.autograd.grad((out * weights).sum(), inputs),
            torch.autograd.grad((expected * weights).sum(), inputs),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attend_needs_whole_groups() -> None:
    q, k = torch.zeros(1, 3, 1, 4), torch.zeros(1, 2, 1, 4)
    with pytest.raises(AssertionError, match="3"):
        attend(q, k, k)


def test_norm() -> None:
    """In float32 whatever comes in; eps keeps silence finite."""
    norm = RMSNorm(4, eps=0.5)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.tensor([[1.0, -1.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    expected = x * norm.weight / torch.tensor([[math.sqrt(3.5)], [1.0]])
    torch.testing.assert_close(norm(x), expected)
    large = RMSNorm(4).half()(torch.full((1, 4), 6e4).half())  # their squares overflow
    assert large.dtype == torch.float16 and (large == 1).all()


def test_feed_forward() -> None:
    layer, x = SwiGLU(6, 10), torch.randn(3, 6)
    gate, up = x @ layer.gate_proj.weight.T, x @ layer.up_proj.weight.T
    expected = (gate * gate.sigmoid() * up) @ layer.down_proj.weight.T
    torch.testing.assert_close(layer(x), expected)
    assert layer.up_proj.bias is None and SwiGLU(2, 2, bias=True).up_proj.bias is not None


@pytest.mark.parametrize(("dim", "theta"), [(128, 1e6), (64, 1e6), (64, 1e4), (40, 1e4)])
def test_frequencies_round_as_the_references(dim: int, theta: float) -> None:
    """To the last bit: at position 30 000 one bit is a thousandth of a radian."""
    reference = 1.0 / (theta ** (torch.arange(0, dim, 2, dtype=torch.float) / dim))
    assert torch.equal(rotary_frequencies(dim, theta=theta), reference)
    exact = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    torch.testing.assert_close(reference.double(), exact, rtol=1e-6, atol=0)


def test_rotary_turns_pairs() -> None:
    """Dimension i with dimension i + D/2, as complex numbers."""
    x, angle = torch.randn(2, 3, 8), torch.randn(3, 4)
    both = torch.cat((angle, angle), dim=-1)
    turned = apply_rotary(x, both.cos(), both.sin())
    complex_x = torch.complex(x[..., :4], x[..., 4:])
    expected = complex_x * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat((expected.real, expected.imag), dim=-1))


def test_heads() -> None:
    x = torch.randn(2, 3, 12)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 3, 3, 4) and torch.equal(heads[:, 1, 2], x[:, 2, 4:8])
    assert torch.equal(join_heads(heads), x)


@pytest.mark.parametrize("shape", [(96, 240), (2, 3, 24, 240), (1, 240)], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_wide_products_are_exact(shape: tuple[int, ...], bias: bool) -> None:
    """Whoever computes them, float32 is float32, and gradients come as usual."""
    torch.manual_seed(0)
    layer, x = WideLinear(240, 72, bias=bias), torch.randn(shape)
    exact = nn.functional.linear(x.double(), *(p.double() for p in layer.parameters()))
    trained = layer(x)
    assert trained.requires_grad
    for strided in (x, torch.stack((x, x), dim=-1)[..., 0]):
        with torch.inference_mode():
            found = layer(strided)
        assert found.shape == trained.shape and found.dtype == torch.float32
        for product in (found, trained):
            assert (product - exact).abs().max() < 1e-6 * exact.abs().max()
    narrow = layer.to(torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(
            narrow(x.bfloat16()), nn.functional.linear(x.bfloat16(), narrow.weight, narrow.bias)
        )
