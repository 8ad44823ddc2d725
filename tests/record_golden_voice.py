"""Records what transformers 5.17.0 computes from codec ids to sound, with tiny random networks.

Run by hand, where that transformers is installed: python tests/record_golden_voice.py
Writes tests/golden/voice.safetensors, which the tests of speaker.py, dit.py, bigvgan.py and
code2wav.py read. Everything drawn is seeded, so a second run changes nothing.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from reference import transformers  # first: it makes the rest importable
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling

assert transformers.__version__ == "5.17.0", transformers.__version__
GOLDEN = Path(__file__).parent / "golden" / "voice.safetensors"
DIT: dict[str, Any] = dict(
    hidden_size=32, num_hidden_layers=5, num_attention_heads=2, head_dim=16, ff_mult=2, emb_dim=16,
    num_embeds=60, look_ahead_layers=[2], look_backward_layers=[0, 3], enc_emb_dim=12, enc_dim=8,
    enc_channels=[16, 16, 16, 16, 48], enc_attention_channels=8, enc_se_channels=8,
)  # fmt: skip
BIGVGAN = dict(
    upsample_initial_channel=32, upsample_rates=[5, 4, 3, 4], upsample_kernel_sizes=[11, 8, 7, 8]
)
ROWS, NUM_IDS, REF_FRAMES = 2, 29, 40  # 58 mel frames: two whole blocks and a short one
TIME = 0.3
INPUT_STEP = 1 / 32  # inputs are int8 times this
SEED = 5  # of the noise that the reference draws itself
SEEDED_IDS = 3


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = transformers.Qwen2_5OmniConfig(
        token2wav_config=dict(dit_config=DIT, bigvgan_config=BIGVGAN)
    ).token2wav_config
    network = modeling.Qwen2_5OmniToken2WavModel(config).eval()
    tensors = randomise(network)
    inputs = {
        "noise": draw_int8(ROWS, 2 * NUM_IDS, 80),
        "cond": draw_int8(ROWS, DIT["enc_emb_dim"]),
        "ref_mel": draw_int8(ROWS, REF_FRAMES, 80) - 64,
        "ids": torch.randint(0, DIT["num_embeds"], (ROWS, NUM_IDS)).to(torch.int8),
    }
    noise, cond, ref_mel, ids = (inputs[name] * INPUT_STEP for name in inputs)
    ids = inputs["ids"].long()
    with given_noise(noise):
        mel = network.code2wav_dit_model.sample(cond, ref_mel, ids)
    with given_noise(noise[:1]):
        wave = network(ids[:1], cond[:1], ref_mel[:1])
    torch.manual_seed(SEED)
    seeded = network.code2wav_dit_model.sample(cond[:1], ref_mel[:1], ids[:1, :SEEDED_IDS])
    tensors |= inputs | {"mel": mel, "wave": wave, "seeded_mel": seeded}
    for dtype in (torch.float32, torch.bfloat16):
        network.to(dtype)
        suffix = str(dtype).removeprefix("torch.")
        dit, vocoder = network.code2wav_dit_model, network.code2wav_bigvgan_model
        tensors[f"speaker.{suffix}"] = dit.input_embed.spk_encoder(ref_mel.to(dtype))
        tensors[f"velocity.{suffix}"] = dit(  # both branches: with codes and voice, and without
            hidden_states=noise.to(dtype),
            condition_vector=ref_mel.to(dtype),
            speaker_embedding=cond[:, None].repeat(1, 2 * NUM_IDS, 1).to(dtype),
            quantized_code=ids,
            time_step=torch.tensor(TIME, dtype=dtype),
        )
        tensors[f"vocoded.{suffix}"] = vocoder(mel[:1, :, :20].to(dtype))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        GOLDEN,
        metadata={"dit": json.dumps(DIT), "bigvgan": json.dumps(BIGVGAN)},
    )
    print(GOLDEN.stat().st_size, "bytes")
    print({name: tensors[name].std().item() for name in ("mel", "wave", "velocity.float32")})


def randomise(network: nn.Module) -> dict[str, Tensor]:
    """Weights that make every branch matter, with numbers that bfloat16 holds exactly."""
    for name, weight in network.named_parameters():
        fan_in = 2 * weight.shape[0] if ".ups." in name else weight[0].numel()
        if weight.ndim == 1:  # the mels near -4, as real ones are
            weight.normal_(std=0.1).sub_(4.0 if name.endswith("proj_out.bias") else 0.0)
        elif "codec_embed" in name:
            weight.normal_()
        elif "bigvgan" in name:
            gain = 0.4 if "resblocks" in name else 0.25 if "conv_post" in name else 0.9
            weight.normal_(std=gain / fan_in**0.5)
        else:
            weight.normal_(std=1.4 / fan_in**0.5)
        weight.copy_(weight.bfloat16())
    return {f"token2wav.{n}": p.bfloat16().clone() for n, p in network.named_parameters()}


def draw_int8(*shape: int) -> Tensor:
    """Roughly normal with a deviation of 32."""
    return (torch.randn(shape) * 32).round().clamp(-63, 63).to(torch.int8)


@contextmanager
def given_noise(noise: Tensor) -> Iterator[None]:
    """The reference's sampler starts from this instead of drawing."""
    with mock.patch.object(torch, "randn", lambda *args, **kwargs: noise.clone()):
        yield


if __name__ == "__main__":
    main()
