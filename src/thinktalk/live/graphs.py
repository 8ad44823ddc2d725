"""Steps of the networks on buffers with fixed addresses: one launch each, where CUDA can do that.

A decode step is a thousand small kernels, and launching them one by one takes longer than they do.
So a step is recorded once for every shape and replayed from then on: inputs are copied into its
buffers, the replay reads and writes nothing but those, weights and caches, and what came out is
copied out. Rows are padded to a few sizes and block tables to a few widths, so that few shapes
occur; the first time pays for the recording, and a shape beyond the bounds runs as it is. Networks
know nothing of this.

On a CPU a replay calls the step on the same buffers, so all but the recording itself is tested
there. The authors had no GPU at hand: what this file does with CUDA was never run by them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

STEP_ROWS = (1, 2, 4, 8, 16, 32, 64)  # of a decode or Talker step
VOICE_ROWS = (1, 2, 4, 8)  # of DiT and vocoder, whose kernels are long for more rows than that
TABLE_BLOCKS = (4, 8, 16, 32, 64, 128, 256, 512)  # of 64 positions: 256 to 32768
MAX_GRAPHS = 192  # a bound on what the shapes of all steps together may take
WARM_UPS = 3  # runs before the recording, in which libraries choose kernels and get their memory

# tensors whose first dimensions are multiples of the number of rows in, the same out
Step = Callable[..., tuple[Tensor, ...]]

log = logging.getLogger(__name__)


class Graphs:
    """counters: how often steps were recorded, replayed and run as they are."""

    def __init__(self, device: torch.device):
        self.device = device
        self.counters: Counter[str] = Counter()
        self._known: dict[Hashable, Recorded | None] = {}
        self._memory = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def run(
        self,
        name: Hashable,
        step: Step,
        inputs: Sequence[Tensor],
        *,
        rows: int,
        sizes: Sequence[int],
    ) -> tuple[Tensor, ...]:
        """step(*inputs), for `rows` rows padded to the next of `sizes`.

        Every call with the same name and shapes must bring the same step: it is only looked at the
        first time. It must not depend on anything that changes but its inputs and caches, nor wait
        for the device, and must give the same when it is repeated. Integers of padding rows are 0,
        their other values anything.
        """
        size = up_to(rows, sizes)
        shape = (name, size, *((x.shape[0] // rows, x.shape[1:], x.dtype) for x in inputs))
        if size is not None and shape not in self._known and len(self._known) < MAX_GRAPHS:
            self._known[shape] = self._record(name, step, inputs, rows=rows, size=size)
        recorded = self._known.get(shape)
        if recorded is None:
            self.counters["eager_steps"] += 1
            return step(*inputs)
        self.counters["replays"] += 1
        return recorded(inputs, rows=rows)

    def _record(
        self, name: Hashable, step: Step, inputs: Sequence[Tensor], *, rows: int, size: int
    ) -> "Recorded | None":
        recorded = Recorded(step, inputs, rows=rows, size=size)
        if self.device.type == "cuda":
            try:
                with torch.cuda.device(self.device):  # a thread begins on the first one
                    recorded.capture(self._memory)
            except RuntimeError:  # it runs as it is then, slower
                log.exception("the step %s for %d rows cannot be recorded", name, size)
                return None
        self.counters["recorded"] += 1
        return recorded


class Recorded:
    """One step for one shape. size: rows of the buffers."""

    def __init__(self, step: Step, inputs: Sequence[Tensor], *, rows: int, size: int):
        self.size = size
        self._buffers = [x.new_zeros(len(x) // rows * size, *x.shape[1:]) for x in inputs]
        self._step, self._outputs = step, ()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._fill(inputs)

    def __call__(self, inputs: Sequence[Tensor], *, rows: int) -> tuple[Tensor, ...]:
        self._fill(inputs)
        if self._graph is None:
            self._outputs = self._step(*self._buffers)
        else:
            self._graph.replay()
        # copies: the next replay, of this step or another that shares its memory, writes there
        return tuple(x[: len(x) // self.size * rows].clone() for x in self._outputs)

    def capture(self, memory: Any) -> None:
        """Records the step on a stream of its own; it has run a few times then."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._step(*self._buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may use the device meanwhile
        with torch.cuda.graph(graph, pool=memory, capture_error_mode="thread_local"):
            self._outputs = self._step(*self._buffers)
        self._graph = graph

    def _fill(self, inputs: Sequence[Tensor]) -> None:
        for buffer, values in zip(self._buffers, inputs, strict=True):
            buffer[: len(values)].copy_(values)
            if not values.is_floating_point():  # an old block table would write into its blocks
                buffer[len(values) :].zero_()


def up_to(count: int, sizes: Sequence[int]) -> int | None:
    """The smallest of `sizes` (in ascending order) that holds so many; None if none does."""
    return next((size for size in sizes if size >= count), None)
