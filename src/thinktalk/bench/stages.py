"""Every network alone: how long it takes for a window, a token, a block, a second of sound."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thinktalk.bench.meter import median_ms
from thinktalk.bench.plan import Network
from thinktalk.config import DecoderConfig
from thinktalk.media.mel import VOICE_HZ
from thinktalk.model.audio import split_windows
from thinktalk.model.cache import BLOCK_POSITIONS, KVCache, StepPlan
from thinktalk.model.code2wav import Token2Wav
from thinktalk.model.dit import Solver
from thinktalk.model.omni import Omni

PICTURE = (1, 16, 16)  # grid of 224 x 224 pixels: 64 tokens
PREFILL_TOKENS = 256
CONTEXT = 512  # positions in the cache when a token is decoded
BATCHES = (1, 8)
UTTERANCE_BLOCKS = 10  # of 0.24 s, for whole utterances


@dataclass(frozen=True)
class Stage:
    """ms: median of one run. unit: what one run makes, `rows` of them at once; sound_s: how many
    seconds of sound that is, per row, where it is sound."""

    network: str
    unit: str
    rows: int
    ms: float
    sound_s: float | None = None

    @property
    def per_sound_s(self) -> float | None:
        """Seconds for a second of sound."""
        return None if self.sound_s is None else self.ms / 1000 / (self.rows * self.sound_s)


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
        ms = median_ms(lambda w=windows, n=lengths: tower(w.to(like.dtype), n), device=like.device)
        found.append(Stage("audio encoder", "2 s window", rows, ms, 2.0))
    return found


def vision(omni: Omni, solver: Solver) -> list[Stage]:
    tower = omni.thinker.visual
    like = tower.patch_embed.proj.weight
    grid = torch.tensor([PICTURE])
    shape = int(grid.prod()), tower.config.patch_dim
    patches = torch.randn(shape, device=like.device, dtype=like.dtype)
    ms = median_ms(lambda: tower(patches, grid), device=like.device)
    return [Stage("vision encoder", "picture of 64 tokens", 1, ms)]


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
        found.append(Stage(name, unit, rows, median_ms(run, device=like.device)))
    return found


def dit(omni: Omni, solver: Solver) -> list[Stage]:
    """A block as the live engine renders it, together with the one after it and with the past of
    the one before; and whole utterances as the reference computes them."""
    found = [dit_stage(omni.token2wav, solver, rows=rows, blocks=1) for rows in BATCHES]
    return [*found, dit_stage(omni.token2wav, solver, rows=1, blocks=UTTERANCE_BLOCKS)]


def dit_stage(token2wav: Token2Wav, solver: Solver, *, rows: int, blocks: int) -> Stage:
    """One evaluation of the solver is measured; all cost the same."""
    network, config = token2wav.code2wav_dit_model, token2wav.code2wav_dit_model.config
    like, device = network.proj_out.weight, network.proj_out.weight.device
    full, short = network.schedule(solver), network.schedule("euler", num_points=2)
    frames = (2 if blocks == 1 else blocks) * config.block_size
    codes = torch.zeros(rows, frames // config.repeats, dtype=torch.int64, device=device)
    voice = torch.zeros(rows, full.branches, config.hidden_size, device=device, dtype=like.dtype)
    context = network.branch_context(codes, voice)
    past = None
    if blocks == 1:
        layers = len(config.look_backward_layers)
        shape = len(context), len(short.modulations), layers, *network.carry_shape
        past = torch.zeros(shape, device=device, dtype=like.dtype)
    seen = torch.full((len(context),), past is not None, device=device)
    layout = network.layout(len(context), frames, has_past=seen)
    noise = torch.randn(rows, frames, config.mel_dim, device=device)
    ms = median_ms(lambda: network.solve(noise, context, layout, short, past=past), device=device)
    ms *= len(full.modulations)
    name = f"DiT, {len(full.modulations)} evaluations"
    return Stage(name, blocks_in_words(blocks), rows, ms, seconds_of(token2wav, blocks))


def vocoder(omni: Omni, solver: Solver) -> list[Stage]:
    token2wav = omni.token2wav
    config, like = token2wav.config.dit_config, token2wav.code2wav_bigvgan_model.conv_pre.weight
    found = []
    for blocks in (1, UTTERANCE_BLOCKS):
        around = 2 * token2wav.practical_context if blocks == 1 else 0
        frames = blocks * config.block_size + around
        mel = torch.randn(1, frames, config.mel_dim, device=like.device) - 4
        ms = median_ms(lambda mel=mel: token2wav.vocode(mel), device=like.device)
        sound_s = seconds_of(token2wav, blocks)
        found.append(Stage("vocoder", blocks_in_words(blocks), 1, ms, sound_s))
    return found


MEASURES = {
    "audio": audio,
    "vision": vision,
    "thinker": thinker,
    "talker": talker,
    "dit": dit,
    "vocoder": vocoder,
}


def blocks_in_words(blocks: int) -> str:
    return "block" if blocks == 1 else f"{blocks} blocks at once"


def seconds_of(token2wav: Token2Wav, blocks: int) -> float:
    ids = blocks * token2wav.config.dit_config.codes_per_block
    return ids * token2wav.samples_per_id / VOICE_HZ
