"""Every network alone: how long it takes for a window, a token, a block, a second of sound."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinktalk.bench.meter import Spent, repeat
from thinktalk.bench.plan import Network
from thinktalk.config import DecoderConfig, Solver
from thinktalk.media.mel import VOICE_HZ
from thinktalk.model.audio import split_windows
from thinktalk.model.cache import BLOCK_POSITIONS, KVCache, StepPlan
from thinktalk.model.code2wav import Token2Wav, group_blocks
from thinktalk.model.dit import DiT, Schedule
from thinktalk.model.omni import Omni

PICTURE = (1, 16, 16)  # grid of 224 x 224 pixels: 64 tokens
PREFILL_TOKENS = 256
CONTEXT = 512  # positions in the cache when a token is decoded
BATCHES = (1, 8)
UTTERANCE_BLOCKS = 10  # of 0.24 s
UTTERANCE = f"{UTTERANCE_BLOCKS} blocks, a whole utterance"


@dataclass(frozen=True)
class Stage:
    """spent: median of one run. unit: what one run makes, `rows` of them at once; sound_s: how many
    seconds of sound that is, per row, where it is sound."""

    network: str
    unit: str
    rows: int
    spent: Spent
    sound_s: float | None = None

    @property
    def per_sound_s(self) -> float | None:
        """Seconds for a second of sound."""
        return None if self.sound_s is None else self.spent.ms / 1000 / (self.rows * self.sound_s)


def modules(omni: Omni, networks: tuple[Network, ...]) -> list[nn.Module]:
    """What of the model these networks need."""
    token2wav = omni.token2wav
    parts = {
        "audio": [omni.thinker.audio_tower],
        "vision": [omni.thinker.visual],
        "thinker": [omni.thinker.model, omni.thinker.lm_head],
        "talker": [omni.talker],
        "dit": [token2wav.code2wav_dit_model],
        "vocoder": [token2wav.code2wav_bigvgan_model],
    }
    return [module for network in networks for module in parts[network]]


@torch.inference_mode()
def measure_stages(omni: Omni, *, networks: tuple[Network, ...], solver: Solver) -> list[Stage]:
    stages: list[Stage] = []
    for network in networks:
        stages += MEASURES[network](omni, solver)
    return stages


def audio(omni: Omni, solver: Solver) -> list[Stage]:
    tower = omni.thinker.audio_tower
    like, frames = tower.conv1.weight, tower.config.window_frames
    found = []
    for rows in BATCHES:
        mel = torch.randn(tower.config.num_mel_bins, rows * frames, device=like.device)
        windows, lengths = split_windows(mel)
        spent = repeat(lambda w=windows, n=lengths: tower(w.to(like.dtype), n), device=like.device)
        found.append(Stage("audio encoder", "2 s window", rows, spent, 2.0))
    return found


def vision(omni: Omni, solver: Solver) -> list[Stage]:
    tower = omni.thinker.visual
    like = tower.patch_embed.proj.weight
    grid = torch.tensor([PICTURE])
    shape = int(grid.prod()), tower.config.patch_dim
    patches = torch.randn(shape, device=like.device, dtype=like.dtype)
    spent = repeat(lambda: tower(patches, grid), device=like.device)
    return [Stage("vision encoder", "picture of 64 tokens", 1, spent)]


def thinker(omni: Omni, solver: Solver) -> list[Stage]:
    network = omni.thinker
    return decoder("Thinker", network, network.logits, network.config.text_config, network.dtype)


def talker(omni: Omni, solver: Solver) -> list[Stage]:
    network = omni.talker
    dtype = network.codec_head.weight.dtype
    return decoder("Talker", network, network.logits, network.config, dtype)


def decoder(
    name: str,
    network: nn.Module,
    logits: Callable[[Tensor], Tensor],
    config: DecoderConfig,
    dtype: torch.dtype,
) -> list[Stage]:
    """Prefill of one row, and decoding with logits at a context of CONTEXT."""
    like = next(network.parameters())
    found = []
    for rows, count in ((1, PREFILL_TOKENS), *((rows, 1) for rows in BATCHES)):
        blocks = (CONTEXT + PREFILL_TOKENS) // BLOCK_POSITIONS
        cache = KVCache(config, num_blocks=rows * blocks, dtype=dtype, device=like.device)
        start = CONTEXT if count == 1 else 0
        plan = StepPlan(
            tables=torch.arange(rows * blocks, device=like.device).view(rows, blocks),
            starts=torch.full((rows,), start, device=like.device),
            lengths=torch.full((rows,), count, device=like.device),
            context=start + count,
        )
        x = torch.randn(rows, count, config.embedding_dim, device=like.device, dtype=dtype)
        positions = (start + torch.arange(count, device=like.device)).expand(3, rows, count)

        def run(
            x: Tensor = x, positions: Tensor = positions, cache: KVCache = cache, plan=plan
        ) -> Tensor:
            hidden = network(x, positions=positions, cache=cache, plan=plan)
            return logits(hidden[:, -1])

        unit = "token" if count == 1 else f"prompt of {count}"
        found.append(Stage(name, unit, rows, repeat(run, device=like.device)))
    return found


def dit(omni: Omni, solver: Solver) -> list[Stage]:
    """Groups of blocks as the live engine renders them, each together with the block after it: the
    first, and later ones; and whole utterances as the reference computes them."""
    token2wav = omni.token2wav
    network = token2wav.code2wav_dit_model
    # one evaluation of the solver is measured; all cost the same
    evaluations = len(network.schedule(solver).modulations)
    one = network.schedule("euler", num_points=2)
    name, found = f"DiT, {evaluations} evaluations", []
    for first, rows in ((0, 1), (later_group(), 1), (later_group(), max(BATCHES))):
        blocks = group_blocks(first)
        spent = repeat(rendering(token2wav, one, first=first, rows=rows), device=device_of(network))
        unit, sound_s = in_words(blocks, first), seconds_of(token2wav, blocks)
        found.append(Stage(name, unit, rows, spent.times(evaluations), sound_s))
    spent = repeat(sampling(network, one), device=device_of(network))
    sound_s = seconds_of(token2wav, UTTERANCE_BLOCKS)
    return [*found, Stage(name, UTTERANCE, 1, spent.times(evaluations), sound_s)]


def rendering(
    token2wav: Token2Wav, schedule: Schedule, *, first: int, rows: int
) -> Callable[[], object]:
    """The group of blocks that begins with block number `first`, of so many replies at once."""
    state = token2wav.new_state(rows, schedule)
    count = (group_blocks(first) + 1) * token2wav.config.dit_config.codes_per_block
    ids, counts = torch.zeros(rows, count, dtype=torch.int64), torch.full((rows,), count)

    def run() -> None:
        state.blocks.fill_(first)
        token2wav.render(state, ids, counts=counts, schedule=schedule)

    return run


def sampling(network: DiT, schedule: Schedule) -> Callable[[], object]:
    """A whole utterance at once, without look-ahead to leave out."""
    config, device = network.config, device_of(network)
    frames = UTTERANCE_BLOCKS * config.block_size
    voice = network.proj_out.weight.new_zeros(1, schedule.branches, config.hidden_size)
    codes = torch.zeros(1, frames // config.repeats, dtype=torch.int64, device=device)
    context = network.branch_context(codes, voice)
    layout = network.layout(len(context), frames)
    noise = torch.randn(1, frames, config.mel_dim, device=device)
    return lambda: network.solve(noise, context, layout, schedule)


def vocoder(omni: Omni, solver: Solver) -> list[Stage]:
    token2wav, network = omni.token2wav, omni.token2wav.code2wav_bigvgan_model
    config, found = token2wav.config.dit_config, []
    group = group_blocks(later_group())
    around = 2 * token2wav.practical_context
    for unit, blocks, extra in (
        (in_words(group, later_group()), group, around),
        (UTTERANCE, UTTERANCE_BLOCKS, 0),
    ):
        frames = blocks * config.block_size + extra
        mel = torch.randn(1, frames, config.mel_dim, device=device_of(network)) - 4
        spent = repeat(lambda mel=mel: token2wav.vocode(mel), device=device_of(network))
        found.append(Stage("vocoder", unit, 1, spent, seconds_of(token2wav, blocks)))
    return found


MEASURES = {
    "audio": audio,
    "vision": vision,
    "thinker": thinker,
    "talker": talker,
    "dit": dit,
    "vocoder": vocoder,
}


def later_group() -> int:
    """Where a group of blocks begins once the groups have their final size."""
    first = 0
    while first < 100:
        first += group_blocks(first)
    return first


def in_words(blocks: int, first: int) -> str:
    when = "later" if first else "first"
    return f"the {when} block" if blocks == 1 else f"{blocks} {when} blocks"


def seconds_of(token2wav: Token2Wav, blocks: int) -> float:
    ids = blocks * token2wav.config.dit_config.codes_per_block
    return ids * token2wav.samples_per_id / VOICE_HZ


def device_of(network: nn.Module) -> torch.device:
    return next(network.parameters()).device
