"""Flattened patches of images and video frames in, one token per 2x2 patches for the Thinker out.

Shapes: G images and videos, P patches of all of them, C width of the encoder, H heads, D head size.
A grid is (frame pairs, rows, columns) in patches. Patches come in the processor's order: pair,
block row, block column, row in the 2x2 block, column in the block. A vision transformer with 2D
rotary positions that looks at windows of 112 pixels in most blocks and at the whole frame pair in
a few (Qwen2.5-VL report, 2025); frame pairs never see each other. Reference: transformers
modeling_qwen2_5_omni.py.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from thinktalk.config import VisionConfig
from thinktalk.model.layers import (
    RMSNorm,
    SwiGLU,
    apply_rotary,
    attend,
    join_heads,
    rotary_frequencies,
)

ROTARY_THETA = 1e4


class VisionEncoder(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.blocks = nn.ModuleList(VisionBlock(config) for _ in range(config.depth))
        self.merger = PatchMerger(config)

    def forward(self, patches: Tensor, grids: Tensor) -> Tensor:
        """patches [P, channels*frames*rows*columns], grids int64 [G,3] -> tokens [P/4,out_hidden].

        Tokens come as pair, row, column, image after image. The grids are read on the host: keep
        them on the CPU, or the device has to wait.
        """
        places = patch_places(grids, self.config)
        assert patches.shape == (len(places.row), self.config.patch_dim), (
            f"{tuple(patches.shape)} patches for grids {grids.tolist()}"
        )
        head_size = self.config.hidden_size // self.config.num_heads
        rotation = axial_rotation(places, head_size)
        windows = group(places.window, rotation, device=patches.device)
        pairs = group(places.pair, rotation, device=patches.device)
        x = self.patch_embed(patches)  # [P,C]
        for index, block in enumerate(self.blocks):
            x = block(x, pairs if index in self.config.fullatt_block_indexes else windows)
        return self.merger(x)


class PatchEmbedding(nn.Module):
    """A 3D convolution whose stride is its kernel, so a linear map of flattened patches."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, kernel, stride=kernel, bias=False
        )

    def forward(self, patches: Tensor) -> Tensor:
        weight = self.proj.weight
        # in the dtype of the weights: under autocast the residual stream stays float32
        return F.linear(patches.to(weight.dtype), weight.flatten(1)).to(weight.dtype)


class VisionBlock(nn.Module):
    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = RMSNorm(config.hidden_size)
        self.norm2 = RMSNorm(config.hidden_size)
        self.attn = GroupAttention(config.hidden_size, config.num_heads)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=True)

    def forward(self, x: Tensor, groups: "Groups") -> Tensor:
        x = x + self.attn(self.norm1(x), groups)
        return x + self.mlp(self.norm2(x))


class GroupAttention(nn.Module):
    """Attention of every patch to all patches of its group."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.head_size = width // num_heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, groups: "Groups") -> Tensor:
        x = x[groups.order]
        q, k, v = (
            projection(x).unflatten(-1, (-1, self.head_size))  # [P,H,D]
            for projection in (self.q, self.k, self.v)
        )
        q, k = (apply_rotary(part, groups.cos, groups.sin).to(v.dtype) for part in (q, k))
        out, start = [], 0
        for num_groups, size in groups.batches:
            end = start + num_groups * size
            q_, k_, v_ = (
                part[start:end].unflatten(0, (num_groups, size)).transpose(1, 2)
                for part in (q, k, v)
            )
            out.append(join_heads(attend(q_, k_, v_)).flatten(0, 1))  # [groups*size,C]
            start = end
        return self.proj(torch.cat(out))[groups.inverse]


class PatchMerger(nn.Module):
    """The patches of one 2x2 block, side by side, to one token."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.width = config.hidden_size * config.spatial_merge_size**2
        self.ln_q = RMSNorm(config.hidden_size)
        self.mlp = nn.Sequential(
            nn.Linear(self.width, self.width),
            nn.GELU(),
            nn.Linear(self.width, config.out_hidden_size),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.ln_q(x).view(-1, self.width))


@dataclass(frozen=True)
class Places:
    """Where each patch is, each int64 [P]: patch coordinates and numbers of its groups."""

    row: Tensor
    column: Tensor
    window: Tensor
    pair: Tensor


def patch_places(grids: Tensor, config: VisionConfig) -> Places:
    """One row per patch, in the order of the patches; groups are numbered over all grids."""
    merge = config.spatial_merge_size
    side = config.window_size // (config.patch_size * merge) * merge  # patches along a window
    rows, columns, windows, pairs = [], [], [], []
    num_windows = num_pairs = 0
    for pairs_here, height, width in grids.tolist():
        assert height % merge == width % merge == 0, f"grid {height} x {width} cannot be merged"
        block_row, block_column, row, column = (
            torch.arange(size).view([-1 if axis == this else 1 for axis in range(4)])
            for this, size in enumerate((height // merge, width // merge, merge, merge))
        )
        row = (block_row * merge + row).expand(-1, width // merge, -1, merge).flatten()
        column = (block_column * merge + column).expand(height // merge, -1, merge, -1).flatten()
        windows_across = -(-width // side)
        window = row // side * windows_across + column // side
        pair = torch.arange(pairs_here).repeat_interleave(height * width)
        windows_per_pair = -(-height // side) * windows_across
        rows.append(row.repeat(pairs_here))
        columns.append(column.repeat(pairs_here))
        windows.append(window.repeat(pairs_here) + pair * windows_per_pair + num_windows)
        pairs.append(pair + num_pairs)
        num_windows += pairs_here * windows_per_pair
        num_pairs += pairs_here
    return Places(*(torch.cat(parts) for parts in (rows, columns, windows, pairs)))


def axial_rotation(places: Places, head_size: int) -> tuple[Tensor, Tensor]:
    """cos and sin [P,1,D] float32: a quarter of the head's angles follow the row, then as many the
    column, and the other half repeats them, as apply_rotary pairs them."""
    frequencies = rotary_frequencies(head_size // 2, theta=ROTARY_THETA)
    angles = [axis[:, None].float() * frequencies for axis in (places.row, places.column)]
    angles = torch.cat(angles * 2, dim=-1)[:, None]
    return angles.cos(), angles.sin()


@dataclass(frozen=True)
class Groups:
    """A permutation that puts groups of equal size next to each other, so that attention runs in
    few batches without padding or masks (a rectangle has at most four sizes of windows)."""

    order: Tensor  # int64 [P], the patch at each place
    inverse: Tensor  # int64 [P], the place of each patch
    batches: list[tuple[int, int]]  # (number of groups, patches in each), in this order
    cos: Tensor  # [P,1,D] in this order
    sin: Tensor


def group(numbers: Tensor, rotation: tuple[Tensor, Tensor], *, device: torch.device) -> Groups:
    """numbers int64 [P] on the CPU: the group of each patch."""
    sizes = numbers.bincount()
    order = torch.argsort(sizes[numbers] * len(sizes) + numbers, stable=True)
    size_values, counts = sizes.unique(return_counts=True)  # ascending, as in the order
    return Groups(
        order=order.to(device, non_blocking=True),
        inverse=order.argsort().to(device, non_blocking=True),
        batches=list(zip(counts.tolist(), size_values.tolist(), strict=True)),
        cos=rotation[0][order].to(device, non_blocking=True),
        sin=rotation[1][order].to(device, non_blocking=True),
    )
