"""The steps that come again and again: a token for every row, or the sound of a few blocks.

Each is a function of tensors, run as it is or by `Graphs`, which pads rows and block tables.
Shapes: B rows, C width of the Thinker, R replies whose voice is rendered.
"""

from collections.abc import Hashable, Sequence

from torch import Tensor

from thinktalk.live.blocks import BlockPool, Row, send
from thinktalk.live.graphs import STEP_ROWS, TABLE_BLOCKS, VOICE_ROWS, Graphs, Step, up_to
from thinktalk.model.cache import BLOCK_POSITIONS, StepPlan
from thinktalk.model.dit_layer import Layout
from thinktalk.model.flow import Schedule
from thinktalk.model.omni import Omni

Token = tuple[int, int]  # its id, and its position for the rotary angles


class Steps:
    def __init__(
        self,
        omni: Omni,
        *,
        thinker_pool: BlockPool,
        talker_pool: BlockPool,
        schedule: Schedule,
        graphs: Graphs | None = None,
    ):
        self.thinker, self.talker, self.token2wav = omni.thinker, omni.talker, omni.token2wav
        self.thinker_pool, self.talker_pool = thinker_pool, talker_pool
        self.schedule, self.graphs = schedule, graphs

    def think(self, rows: Sequence[Row], tokens: Sequence[Token]) -> tuple[Tensor, Tensor]:
        """Feeds back a text id per row; the Thinker's states, and they plus the embeddings, [B,C].
        Room must be reserved."""

        def step(numbers: Tensor, **known: int | None) -> tuple[Tensor, Tensor]:
            embeddings = self.thinker.embed(numbers[:, 0])
            hidden = self.thinker(
                embeddings[:, None],
                positions=numbers[:, 1].expand(3, 1, -1).mT,
                cache=self.thinker_pool.cache,
                plan=_plan(numbers, **known),
            )[:, 0]
            return hidden, hidden + embeddings

        hidden, sums = self._token("think", step, rows, tokens)
        return hidden, sums

    def talk(self, rows: Sequence[Row], tokens: Sequence[Token], replies: Tensor) -> Tensor:
        """Feeds back a codec id per row, with what the text track says there [B,C]; the Talker's
        states [B,hidden]. Room must be reserved."""

        def step(numbers: Tensor, replies: Tensor, **known: int | None) -> tuple[Tensor, ...]:
            hidden = self.talker(
                (self.talker.embed_codec(numbers[:, 0]) + replies)[:, None],
                positions=numbers[:, 1].expand(3, 1, -1).mT,
                cache=self.talker_pool.cache,
                plan=_plan(numbers, **known),
            )
            return (hidden[:, 0],)

        return self._token("talk", step, rows, tokens, replies)[0]

    def solve(
        self, noise: Tensor, context: Tensor, layout: Layout, *, past: Tensor, kept: int
    ) -> tuple[Tensor, Tensor]:
        """DiT.solve with the schedule: all evaluations of a group of blocks."""

        def step(noise: Tensor, context: Tensor, past: Tensor, *parts: Tensor) -> tuple:
            dit = self.token2wav.code2wav_dit_model
            return dit.solve(noise, context, Layout(*parts), self.schedule, past=past, kept=kept)

        mel, past = self._sound(("solve", kept), step, noise, context, past, *layout)
        return mel, past

    def vocode(self, mel: Tensor) -> Tensor:
        """mel [R,frames,M] -> samples [R,frames * samples_per_frame]."""
        return self._sound("vocode", lambda mel: (self.token2wav.vocode(mel),), mel)[0]

    def _token(
        self,
        name: str,
        step: Step,
        rows: Sequence[Row],
        tokens: Sequence[Token],
        *inputs: Tensor,
    ) -> tuple[Tensor, ...]:
        context = max(row.length for row in rows) + 1
        width = -(-context // BLOCK_POSITIONS)
        if self.graphs is not None:
            width = up_to(width, TABLE_BLOCKS) or width
        numbers = [
            [*token, row.length, 1, *(row.blocks + [0] * width)[:width]]
            for token, row in zip(tokens, rows, strict=True)
        ]
        for row in rows:
            row.length += 1
        inputs = send(numbers, self.thinker_pool.device), *inputs
        if self.graphs is None:
            run = rows[0].run if len(rows) == 1 else None
            return step(*inputs, context=context, run=run)
        return self.graphs.run(name, step, inputs, rows=len(rows), sizes=STEP_ROWS)

    def _sound(self, name: Hashable, step: Step, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.graphs is None:
            return step(*inputs)
        return self.graphs.run(name, step, inputs, rows=len(inputs[0]), sizes=VOICE_ROWS)


def _plan(numbers: Tensor, *, context: int | None = None, run: int | None = None) -> StepPlan:
    """Of numbers int64 [B,4+n]: a token's id, its position, how many positions its row holds, and 1
    (0 in a padding row), then the row's blocks. context, run: see StepPlan; no context: all of the
    blocks."""
    bound = (numbers.shape[1] - 4) * BLOCK_POSITIONS
    return StepPlan(
        tables=numbers[:, 4:],
        starts=numbers[:, 2],
        lengths=numbers[:, 3],
        context=context or bound,
        padded=context is None,
        run=run,
    )
