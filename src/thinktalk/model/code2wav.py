"""Codec ids and a voice in, samples at 24 kHz out; whole utterances, or a few blocks at a time.

Shapes: R rows, n codec ids, M mel bands, D hidden size of the DiT. A block is 12 codec ids =
24 mel frames = 240 ms. Exact synthesis lets every frame depend on ids seconds ahead, because each
of the solver's evaluations looks one block further. The windowed synthesis, which offline and live
share, solves a group of blocks together with the block behind it (the first with half of it) and
keeps the group; of the blocks before, it uses the keys and values that they had in every
evaluation. So the past is exact, and the future ends after one block. Noise depends on (seed,
block) and groups on the number of the block alone, so the sound does not depend on how the ids
arrive.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor, nn

from thinktalk.config import Token2WavConfig
from thinktalk.model.bigvgan import BigVGAN
from thinktalk.model.dit import DiT
from thinktalk.model.flow import Schedule

# Blocks that are rendered together, from the start of an utterance on; the last number repeats. A
# group of g costs the DiT g + 1 blocks and the vocoder 24 g + 2 * context frames: four blocks at
# once are 1.6 times cheaper than one by one. The first are small, so that sound begins early and
# each group is ready before the one before it has been heard.
GROUP_BLOCKS = (1, 1, 2, 4)
# How much of the block behind it the first block waits for: half of it lets sound begin 6 codec ids
# earlier, and moves that block's mel less than the solver does.
FIRST_AHEAD = 0.5
Solve = Callable[..., tuple[Tensor, Tensor]]  # DiT.solve with a schedule


class Token2Wav(nn.Module):
    def __init__(self, config: Token2WavConfig):
        super().__init__()
        self.config = config
        self.code2wav_dit_model = DiT(config.dit_config)
        self.code2wav_bigvgan_model = BigVGAN(config.bigvgan_config)

    @property
    def samples_per_id(self) -> int:
        return self.config.dit_config.repeats * self.config.bigvgan_config.samples_per_frame

    # ---- whole utterances

    @torch.no_grad()
    def synthesize_exact(
        self,
        ids: Tensor,
        *,
        cond: Tensor,
        ref_mel: Tensor,
        seed: int = 0,
        noise: Tensor | None = None,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The reference's computation: ids int64 [R,n] -> samples [R, n * samples_per_id].

        cond [1 or R,enc_emb_dim], ref_mel [1 or R,T,M]: the voice. noise [R,repeats*n,M]: by
        default what the reference draws on a CPU after torch.manual_seed(seed). schedule: by
        default Runge-Kutta over 10 points, 36 evaluations. Raises ValueError for ids without a row
        in the table and for utterances longer than the network was made for.
        """
        dit = self.code2wav_dit_model
        self._check(ids)
        if not ids.numel():
            return ids.new_zeros(ids.shape, dtype=self.dtype)
        frames, limit = ids.shape[1] * dit.config.repeats, dit.config.max_position_embeddings
        if frames > limit:
            raise ValueError(
                f"{ids.shape[1]} codec ids are {frames} mel frames, and the exact synthesis allows "
                f"{limit}; use the windowed one, which has no limit"
            )
        if noise is None:
            generator = torch.Generator("cpu").manual_seed(seed)
            shape = len(ids), frames, dit.config.mel_dim
            noise = torch.randn(shape, generator=generator, device="cpu")
        mel = dit.sample(
            ids,
            cond=cond,
            ref_mel=ref_mel,
            noise=noise.to(ids.device),
            schedule=schedule or dit.schedule("rk4"),
        )
        return self.vocode(mel)

    @torch.no_grad()
    def synthesize(
        self,
        ids: Tensor,
        *,
        cond: Tensor,
        ref_mel: Tensor,
        seed: int = 0,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The windowed computation: ids int64 [R,n] -> samples [R, n * samples_per_id].

        Equal to what `step` gives block by block, up to what its vocoder context leaves out.
        cond, ref_mel: as in synthesize_exact. schedule: by default that of the
        configuration's solver. Raises ValueError for ids without a row in the table.
        """
        self._check(ids)
        if not ids.numel():
            return ids.new_zeros(ids.shape, dtype=self.dtype)
        mel = self.windowed_mel(ids, cond=cond, ref_mel=ref_mel, seed=seed, schedule=schedule)
        return self.vocode(mel)

    @torch.no_grad()
    def windowed_mel(
        self,
        ids: Tensor,
        *,
        cond: Tensor,
        ref_mel: Tensor,
        seed: int = 0,
        schedule: Schedule | None = None,
    ) -> Tensor:
        """The mel under `synthesize`: ids int64 [R,n], n >= 1 -> [R,repeats*n,M]."""
        dit = self.code2wav_dit_model
        schedule = schedule or dit.schedule(dit.config.solver)
        state = self.new_state(len(ids), schedule)
        voices = self.voice(cond, ref_mel, schedule).expand(len(ids), -1, -1)
        for row, voice in enumerate(voices):
            state.reset(row, voice=voice, seed=seed)
        mels = []
        while count := self.block_due(ids.shape[1], blocks=int(state.blocks[0]), finished=True):
            start = int(state.blocks[0]) * dit.config.codes_per_block
            counts = torch.full((len(ids),), count, device="cpu")
            window = ids[:, start : start + count]
            mels.append(self.render(state, window, counts=counts, schedule=schedule))
        return torch.cat(mels, dim=1)[:, : ids.shape[1] * dit.config.repeats]

    def vocode(self, mel: Tensor) -> Tensor:
        """mel [R,frames,M] -> samples [R,frames * samples_per_frame]."""
        return self.code2wav_bigvgan_model(mel.mT.to(self.dtype))

    # ---- a few blocks at a time

    def new_state(
        self, rows: int, schedule: Schedule, *, context_frames: int | None = None
    ) -> "VoiceState":
        """Room for `rows` utterances; each must be `reset` before its first block.

        context_frames: mel frames that the vocoder sees on each side of the samples it gives out;
        they delay the sound by as much. By default `practical_context`; with the vocoder's own
        `context_frames` the samples equal those of the whole utterance.
        """
        dit, weight = self.code2wav_dit_model, self.code2wav_dit_model.proj_out.weight
        context = self.practical_context if context_frames is None else context_frames
        evaluations, layers = len(schedule.modulations), len(dit.config.look_backward_layers)
        lead = rows, schedule.branches
        return VoiceState(
            voice=weight.new_zeros(*lead, dit.config.hidden_size),
            past=weight.new_zeros(*lead, evaluations, layers, *dit.carry_shape),
            mel=weight.new_zeros(rows, 2 * context, dit.config.mel_dim, dtype=torch.float32),
            seed=torch.zeros(rows, dtype=torch.int64, device="cpu"),
            blocks=torch.zeros(rows, dtype=torch.int64, device="cpu"),
        )

    def voice(self, cond: Tensor, ref_mel: Tensor, schedule: Schedule) -> Tensor:
        """cond [B,enc_emb_dim], ref_mel [B,T,M] -> what a state keeps of them, [B,branches,D]."""
        return self.code2wav_dit_model.voice(cond, ref_mel, branches=schedule.branches)

    def block_due(self, num_ids: int, *, blocks: int, finished: bool) -> int:
        """How many ids to hand to `step` for the next blocks of an utterance; 0: wait for more.

        num_ids: ids chosen so far; blocks: blocks already rendered; finished: no more will come.
        """
        block = self.config.dit_config.codes_per_block
        left = num_ids - blocks * block
        if left <= 0:
            return 0
        ahead = block if blocks else int(FIRST_AHEAD * block)
        window = group_blocks(blocks) * block + ahead
        return min(left, window) if finished or left >= window else 0

    @torch.no_grad()
    def step(
        self,
        state: "VoiceState",
        ids: Tensor,
        *,
        counts: Tensor,
        schedule: Schedule,
        solve: Solve | None = None,
        vocode: Callable[[Tensor], Tensor] | None = None,
    ) -> list[Tensor]:
        """`render`, then the samples that are certain now: one tensor [samples] per row.

        The rows may be in different places of their utterances. A row's last ids bring everything
        that was held back. On average a block gives 5760 samples; the first ones give less, by
        `context_frames`. solve, vocode: compute DiT.solve, and `vocode` for windows of few lengths,
        in another way.
        """
        groups = defaultdict(list)  # rows that can be rendered together
        for row, block in enumerate(state.blocks.tolist()):
            groups[group_blocks(block)].append(row)
        waves = [state.mel.new_zeros(0)] * len(ids)
        for rows in groups.values():
            part = state if len(groups) == 1 else state.rows(rows)
            blocks = part.blocks.clone()
            mel = self.render(part, ids[rows], counts=counts[rows], schedule=schedule, solve=solve)
            found = self._vocode(part, mel, vocode, counts=counts[rows], blocks=blocks)
            if part is not state:
                state.write(rows, part)
            for row, samples in zip(rows, found, strict=True):
                waves[row] = samples
        return waves

    @torch.no_grad()
    def render(
        self,
        state: "VoiceState",
        ids: Tensor,
        *,
        counts: Tensor,
        schedule: Schedule,
        solve: Solve | None = None,
    ) -> Tensor:
        """The next group of blocks of every row: its mel [R,24*g,M]; the state moves on in place.

        All rows must be about to render groups of the same number g of blocks. ids: int64
        [R, up to 12*(g+1)] from the start of each row's next block, padded with any valid id.
        counts: int64 [R] on the CPU, how many of them there are: what `block_due` says, or fewer
        where the utterance ends; up to 12*g make this the last group of the row, and its mel has
        2 * count frames.
        """
        dit = self.code2wav_dit_model
        size, repeats, device = dit.config.block_size, dit.config.repeats, state.past.device
        assert int(counts.min()) >= 1 and int(counts.max()) <= ids.shape[1], (counts, ids.shape)
        starts, codes = state.blocks.tolist(), dit.config.codes_per_block
        [kept] = {group_blocks(start) for start in starts}
        windows = min(kept + 1, -(-int(counts.max()) // codes))
        kept = min(kept, windows)
        noise = torch.stack(
            [
                frame_noise(seed, start * size, (start + windows) * size, dit=dit)
                for seed, start in zip(state.seed.tolist(), starts, strict=True)
            ]
        )

        def branched(rows: Tensor) -> Tensor:
            return rows.repeat_interleave(schedule.branches).to(device, non_blocking=True)

        layout = dit.layout(
            len(ids) * schedule.branches,
            windows * size,
            lengths=branched(counts * repeats),
            first=branched(state.blocks * size),
            has_past=branched(state.blocks > 0),
        )
        missing = windows * codes - ids.shape[1]
        ids = nn.functional.pad(ids.to(device, non_blocking=True), (0, missing))
        mel, past = (solve or partial(dit.solve, schedule=schedule))(
            noise.to(device, non_blocking=True),
            dit.branch_context(ids, state.voice),
            layout,
            past=state.past.flatten(0, 1),
            kept=kept,
        )
        state.past.copy_(past.view_as(state.past))
        state.blocks += kept
        return mel[:, : kept * size]

    def _vocode(
        self,
        state: "VoiceState",
        mel: Tensor,
        vocode: Callable[[Tensor], Tensor] | None,
        *,
        counts: Tensor,
        blocks: Tensor,
    ) -> list[Tensor]:
        """mel [R,24*g,M] from block number `blocks` [R] on -> the certain samples, per row."""
        dit, vocoder = self.config.dit_config, self.code2wav_bigvgan_model
        history, rate = state.mel.shape[1], vocoder.config.samples_per_frame
        groups = defaultdict(list)  # rows that the vocoder can take together
        for row, (count, block) in enumerate(zip(counts.tolist(), blocks.tolist(), strict=True)):
            kept = min(block * dit.block_size, history)
            frames = min(count * dit.repeats, mel.shape[1])
            groups[kept, frames, count * dit.repeats <= mel.shape[1]].append(row)
        waves = [mel.new_zeros(0)] * len(mel)
        for (kept, frames, last), rows in groups.items():
            # given out so far: all but the newest history/2 frames
            start = kept - min(kept, history // 2)
            stop = kept + frames - (0 if last else history // 2)
            if stop > start:
                window = torch.cat((state.mel[:, history - kept :], mel[:, :frames]), dim=1)
                if len(rows) < len(mel):
                    window = window[_index(rows, window)]
                # the last window of an utterance may be of any length
                compute = self.vocode if last or vocode is None else vocode
                wave = compute(window)[:, start * rate : stop * rate]
                for row, samples in zip(rows, wave, strict=True):
                    waves[row] = samples
        state.mel.copy_(torch.cat((state.mel, mel), dim=1)[:, mel.shape[1] :])
        return waves

    @property
    def practical_context(self) -> int:
        """7/12 of the vocoder's full reach, behind which nothing but rounding is left.

        Largest error relative to the peak: random weights 2e-5 at 15 and 6e-7 at 20 of 34 frames
        (7B network); trained ones, where it falls off a cliff, 2e-1, 5e-2 and 7e-6 at 10, 12 and 14
        of 23 (spark, worst of eight replies).
        """
        return -(-7 * self.code2wav_bigvgan_model.context_frames // 12)

    @property
    def dtype(self) -> torch.dtype:
        """Of the samples. The DiT may be of another one: noise, state and guidance are float32.

        In bfloat16 its mel is away from float32's by 0.3 % of the mel's deviation (rms, spark; and
        0.3 to 0.6 % with random weights), a tenth of what Euler is away from Runge-Kutta.
        """
        return self.code2wav_bigvgan_model.conv_pre.weight.dtype

    def _check(self, ids: Tensor) -> None:
        rows = self.config.dit_config.num_embeds
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < rows:
            raise ValueError(
                f"codec ids must lie in 0..{rows - 1}, these go from {int(ids.min())} to "
                f"{int(ids.max())}; leave the Talker's special ids out"
            )


@dataclass
class VoiceState:
    """All that utterances in progress remember; row r of every tensor belongs to utterance r.

    voice [R,branches,D]; past [R,branches,evaluations,L,S,2*H*head_dim]: see DiT.solve;
    mel [R,2*context,M]: the newest frames, at the end. On the CPU, so that nothing waits for the
    device: seed int64 [R], and blocks int64 [R] rendered so far.
    """

    voice: Tensor
    past: Tensor
    mel: Tensor
    seed: Tensor
    blocks: Tensor

    def reset(self, row: int, *, voice: Tensor, seed: int) -> None:
        """Starts an utterance in a row; voice [branches,D] as Token2Wav.voice gives it."""
        for field in fields(self):
            getattr(self, field.name)[row] = 0
        self.voice[row] = voice
        self.seed[row] = seed

    def rows(self, index: list[int]) -> "VoiceState":
        """A copy of some rows, in this order: to run them as a batch, or to fork an utterance."""
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: x[_index(index, x)] for name, x in every.items()})

    def write(self, index: list[int], rows: "VoiceState") -> None:
        """Puts rows (as `rows` copies them) at these places."""
        for field in fields(self):
            values = getattr(self, field.name)
            values[_index(index, values)] = getattr(rows, field.name)


def _index(rows: list[int], values: Tensor) -> Tensor:
    """To pick rows of `values` with; a list would make the host wait for the device."""
    return torch.tensor(rows).to(values.device, non_blocking=True)


def group_blocks(first: int) -> int:
    """How many blocks are rendered together from block number `first` on, where a group begins."""
    *single, size = GROUP_BLOCKS
    starts = dict(zip(accumulate(single, initial=0), single, strict=False))
    assert first in starts or (first - sum(single)) % size == 0, f"no group begins at {first}"
    return starts.get(first, size)


def frame_noise(seed: int, start: int, stop: int, *, dit: DiT) -> Tensor:
    """Where the ODE of mel frames start..stop begins: float32 [frames,M], drawn on the CPU.

    A frame's numbers depend on the seed and the frame alone: they are drawn block by block, each
    from a generator of its own.
    """
    size = dit.config.block_size
    first, last = start // size, -(-stop // size)
    draws = []
    for block in range(first, last):
        key = hashlib.blake2b(f"{seed}/voice/{block}".encode(), digest_size=8).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(key, "big"))
        draws.append(torch.randn(size, dit.config.mel_dim, generator=generator, device="cpu"))
    return torch.cat(draws)[start - first * size : stop - first * size]
