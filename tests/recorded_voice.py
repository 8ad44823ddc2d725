"""What record_golden_voice.py wrote: a tiny Token2Wav, its inputs, and the reference's results."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from thinktalk.config import BigVGANConfig, DiTConfig, Token2WavConfig
from thinktalk.model.code2wav import Token2Wav
from thinktalk.model.dit import Rotary

INPUT_STEP = 1 / 32  # recorded inputs are int8 times this
TIME = 0.3  # of the recorded velocity
SEED = 5  # of the recorded mel whose noise the reference drew itself
SEEDED_IDS = 3

with safe_open(Path(__file__).parent / "golden" / "voice.safetensors", "pt") as file:
    CONFIG = Token2WavConfig(
        DiTConfig.from_dict(json.loads(file.metadata()["dit"])),
        BigVGANConfig.from_dict(json.loads(file.metadata()["bigvgan"])),
    )
    TENSORS = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)

NOISE, COND, REF_MEL = (TENSORS[name] * INPUT_STEP for name in ("noise", "cond", "ref_mel"))
IDS = TENSORS["ids"].long()


def recorded_network(dtype: torch.dtype = torch.float32) -> Token2Wav:
    """Built without storage, as large checkpoints are."""
    with torch.device("meta"):
        network = Token2Wav(CONFIG)
    prefix = "token2wav."
    weights = {n.removeprefix(prefix): t for n, t in TENSORS.items() if n.startswith(prefix)}
    network.code2wav_dit_model.rotary_embed = Rotary(CONFIG.dit_config)
    loaded = network.load_state_dict(
        {name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False, assign=True
    )
    assert not loaded.unexpected_keys
    assert loaded.missing_keys == ["code2wav_dit_model.rotary_embed.inv_freq"]  # computed
    network.code2wav_bigvgan_model.reset_buffers()
    return network.eval().requires_grad_(False)


def assert_within_their_error(ours: torch.Tensor, name: str) -> None:
    """Our bfloat16 is at most twice as far from float32 as the reference's own (rms)."""
    exact = TENSORS[f"{name}.float32"]
    theirs = (TENSORS[f"{name}.bfloat16"].float() - exact).square().mean().sqrt()
    assert ours.shape == exact.shape
    assert 0 < (ours.float() - exact).square().mean().sqrt() < 2 * theirs
