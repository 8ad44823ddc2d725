"""The key/value cache as a tensor layout, and the plan that says what one step does with it.

Keys and values of all rows live in blocks of a fixed number of positions; a row owns a list of
blocks (its block table), so rows of any length share one allocation (Kwon et al. 2023). The cache
is state of the caller, passed through forward(); no module keeps any.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from thinktalk.config import DecoderConfig

BLOCK_POSITIONS = 64


@dataclass(frozen=True)
class StepPlan:
    """Which rows advance by which tokens.

    tables: int64 [B, blocks] the block numbers of each row, in order.
    starts: int64 [B] how many positions each row already holds.
    lengths: int64 [B] how many of this step's T tokens are real; the padding behind them is
        computed but never stored.
    context: the largest starts + T of this step, known on the host so that no sync is needed.
    padded: the context is only a bound of that; more keys are read, and masked.
    run: the position at which a single row's blocks begin, where they are known to lie one behind
        the other; then they are read where they are.

    The blocks of a row must hold starts + lengths positions: nothing checks that on the device.
    """

    tables: Tensor
    starts: Tensor
    lengths: Tensor
    context: int
    padded: bool = False
    run: int | None = None

    @property
    def num_keys(self) -> int:
        """How many positions of every row are read: `context`, or all where the blocks end before
        it because the last tokens are padding."""
        return min(self.context, self.tables.shape[1] * BLOCK_POSITIONS)

    def places(self, num_tokens: int) -> Tensor:
        """Where the new tokens go: int64 [B,T] flat cache positions, -1 for padding."""
        new = torch.arange(num_tokens, device=self.starts.device)
        position = self.starts[:, None] + new
        block = (position // BLOCK_POSITIONS).clamp(max=self.tables.shape[1] - 1)
        flat = self.tables.gather(1, block) * BLOCK_POSITIONS + position % BLOCK_POSITIONS
        return flat.masked_fill(new >= self.lengths[:, None], -1)

    def mask(self, num_tokens: int) -> Tensor | None:
        """bool [B,1,T,num_keys]: token t of a row sees that row's positions up to its own.

        None where plain causal attention (all rows start empty) or none at all (one token of one
        row) says the same.
        """
        plain = self.context == num_tokens or (num_tokens == 1 and len(self.starts) == 1)
        if plain and not self.padded:
            return None
        device = self.starts.device
        key = torch.arange(self.num_keys, device=device)
        query = self.starts[:, None] + torch.arange(num_tokens, device=device)
        return (key <= query[..., None])[:, None]


class KVCache:
    """Keys and values of every layer: [layers, blocks * BLOCK_POSITIONS + 1, K, D] each.

    The last position is where padding tokens are written; nothing reads it.
    """

    def __init__(
        self,
        config: DecoderConfig,
        *,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ):
        positions = num_blocks * BLOCK_POSITIONS + 1
        shape = (config.num_hidden_layers, positions, config.num_key_value_heads, config.head_size)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    def view(self, plan: StepPlan, num_tokens: int) -> "CacheView":
        blocks = plan.tables[:, : -(-plan.num_keys // BLOCK_POSITIONS)]
        return CacheView(self, plan.places(num_tokens), blocks, plan.num_keys, plan.run)


@dataclass(frozen=True)
class CacheView:
    """The cache with one step's addresses worked out, shared by all layers of that step.

    write: int64 [B,T] positions; blocks: int64 [B,n] what to read; num_keys: how much of that;
    run: as in StepPlan.
    """

    cache: KVCache
    write: Tensor
    blocks: Tensor
    num_keys: int
    run: int | None

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores k and v [B,K,T,D] and returns each row's whole context [B,K,num_keys,D]."""
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        keys[self.write] = k.transpose(1, 2)
        values[self.write] = v.transpose(1, 2)
        return self._context(keys), self._context(values)

    def _context(self, stored: Tensor) -> Tensor:
        if self.run is not None:
            return stored[self.run : self.run + self.num_keys].transpose(0, 1)[None]
        # whole blocks are copied: three times as fast as position by position
        blocks = stored[:-1].unflatten(0, (-1, BLOCK_POSITIONS))
        rows = blocks.index_select(0, self.blocks.flatten()).unflatten(0, self.blocks.shape)
        return rows.flatten(1, 2)[:, : self.num_keys].transpose(1, 2)


def single_row(
    config: DecoderConfig, *, capacity: int, dtype: torch.dtype, device: torch.device | str
) -> tuple[KVCache, Tensor]:
    """A cache for one row of up to `capacity` positions, and its block table [1, blocks]."""
    num_blocks = -(-capacity // BLOCK_POSITIONS)
    cache = KVCache(config, num_blocks=num_blocks, dtype=dtype, device=device)
    return cache, torch.arange(num_blocks, device=device)[None]


def row_plan(table: Tensor, *, start: int, num_tokens: int) -> StepPlan:
    """The plan that appends `num_tokens` to a row of `single_row` that holds `start` positions."""
    room = table.shape[1] * BLOCK_POSITIONS
    assert start + num_tokens <= room, f"{start} + {num_tokens} positions in a cache of {room}"
    return StepPlan(
        tables=table,
        starts=torch.tensor([start], device=table.device),
        lengths=torch.tensor([num_tokens], device=table.device),
        context=start + num_tokens,
        run=0,
    )
