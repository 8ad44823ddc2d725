"""Records what transformers 5.17.0 computes with tiny random encoders, and its TMRoPE positions.

Run by hand, where that transformers is installed: python tests/record_golden_encoders.py
Writes tests/golden/encoders.safetensors and tests/golden/positions.json, which the tests of
audio.py, vision.py and tmrope.py read. Everything drawn is seeded, so a second run changes nothing.
"""

import hashlib
import json
import random
import re
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from reference import transformers  # first: it makes the rest importable
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.models.qwen2_5_omni import modeling_qwen2_5_omni as modeling
from transformers.models.qwen2_5_omni import processing_qwen2_5_omni as processing

assert transformers.__version__ == "5.17.0", transformers.__version__
GOLDEN = Path(__file__).parent / "golden"
AUDIO = dict(
    d_model=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=64, output_dim=64
)
VISION = dict(
    depth=4,
    hidden_size=32,
    intermediate_size=56,
    num_heads=2,
    out_hidden_size=64,
    fullatt_block_indexes=[1, 3],
)
AUDIO_FRAMES = (1, 2, 3, 7, 199, 200, 201, 530)
GRIDS = ((1, 2, 2), (1, 6, 8), (1, 10, 18), (5, 4, 6), (2, 16, 12))
INPUT_STEP = 1 / 32  # inputs are int8 times this
TEXT = "."
IDS = {
    TEXT: 1000,
    "<|AUDIO|>": 151646,
    "<|audio_bos|>": 151647,
    "<|audio_eos|>": 151648,
    "<|vision_bos|>": 151652,
    "<|vision_eos|>": 151653,
    "<|IMAGE|>": 151655,
    "<|VIDEO|>": 151656,
}
NUM_PROMPTS = 400
NUM_FULL = 8  # prompts whose positions are stored, not only their hash


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    GOLDEN.mkdir(exist_ok=True)
    tensors = record_audio() | record_vision()
    prompts = [record_prompt(random.Random(seed)) for seed in range(NUM_PROMPTS)]
    shortest = sorted(range(NUM_PROMPTS), key=lambda i: prompts[i]["positions"].shape[1])
    full = [i for i in shortest if len(prompts[i]["runs"]) > 12][:NUM_FULL]
    for i, prompt in enumerate(prompts):
        positions = prompt.pop("positions")
        prompt["sha256"] = digest(positions)
        if prompt["disputed"]:
            columns = sorted(map(tuple, positions.T.tolist()))
            prompt["sha256_sorted"] = digest(torch.tensor(columns).T)
        if i in full:
            tensors[f"positions.{i}"] = positions.to(torch.int16)
    meta = {"audio": json.dumps(AUDIO), "vision": json.dumps(VISION)}
    save_file(tensors, GOLDEN / "encoders.safetensors", metadata=meta)
    rows = ",\n".join(json.dumps(prompt, separators=(",", ":")) for prompt in prompts)
    (GOLDEN / "positions.json").write_text(f"[\n{rows}\n]\n")
    print({path.name: path.stat().st_size for path in GOLDEN.iterdir()}, "bytes")
    print(sum(prompt["disputed"] for prompt in prompts), "prompts with disputed chunk borders")


def record_audio() -> dict[str, Tensor]:
    encoder = modeling.Qwen2_5OmniAudioEncoder(modeling.Qwen2_5OmniAudioEncoderConfig(**AUDIO))
    tensors = randomise(encoder, "audio.")
    mel = draw_int8(128, max(AUDIO_FRAMES))
    tensors["audio_mel"] = mel
    for frames in AUDIO_FRAMES:
        for suffix, network in both_precisions(encoder):
            tokens = network(
                (mel * INPUT_STEP)[:, :frames], feature_lens=torch.tensor([frames])
            ).last_hidden_state
            tensors[f"audio_tokens.{frames}.{suffix}"] = tokens
    return tensors


def record_vision() -> dict[str, Tensor]:
    encoder = modeling.Qwen2_5OmniVisionEncoder(modeling.Qwen2_5OmniVisionEncoderConfig(**VISION))
    tensors = randomise(encoder, "vision.")
    # The patches are a product of small integers: exact in float32, and small in the file.
    mixture, sources = draw_int8(736, 16) // 16, draw_int8(16, 1176) // 4
    tensors |= {"vision_mixture": mixture, "vision_sources": sources}
    patches = (mixture.float() @ sources.float()) * INPUT_STEP
    assert len(patches) == sum(np.prod(grid) for grid in GRIDS)
    for suffix, network in both_precisions(encoder):
        tensors[f"vision_tokens.{suffix}"] = network(patches, torch.tensor(GRIDS)).pooler_output
    return tensors


def randomise(encoder: nn.Module, prefix: str) -> dict[str, Tensor]:
    """Fills the weights so that every branch matters, with numbers that bfloat16 holds exactly."""
    encoder.eval().requires_grad_(False)
    for name, weight in encoder.named_parameters():
        if weight.ndim > 1:
            weight.normal_(std=1.4 / weight[0].numel() ** 0.5)
        else:
            weight.normal_(std=0.3).add_("norm" in name and name.endswith("weight"))
        weight.copy_(weight.bfloat16())
    return {prefix + name: p.bfloat16().clone() for name, p in encoder.named_parameters()}


def draw_int8(*shape: int) -> Tensor:
    """Roughly normal with a deviation of 40."""
    return (torch.randn(shape) * 40).round().clamp(-127, 127).to(torch.int8)


def both_precisions(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    return [("fp32", encoder.float()), ("bf16", clone(encoder).bfloat16())]


def clone(encoder: nn.Module) -> nn.Module:
    copy = type(encoder)(encoder.config)
    copy.load_state_dict(encoder.state_dict())
    return copy.eval().requires_grad_(False)


def record_prompt(rng: random.Random) -> dict[str, Any]:
    """One prompt: run-length coded ids, what stands in it, and the reference's positions."""
    sounding = rng.random() < 0.5  # the reference cannot mix silent and sounding videos
    kinds = [rng.choice(["image", "audio", "video", "video"]) for _ in range(rng.randint(0, 5))]
    text, images, videos, seconds, audio_frames = TEXT * rng.randint(1, 30), [], [], [], []
    for kind in kinds:
        if kind == "image":
            images.append([1, 2 * rng.randint(1, 20), 2 * rng.randint(1, 20)])
            text += "<|vision_bos|><|IMAGE|><|vision_eos|>"
        elif kind == "audio":
            text += "<|audio_bos|><|AUDIO|><|audio_eos|>"
        else:
            pairs = rng.randint(1, rng.choice([2, 8, 40]))
            videos.append([pairs, 2 * rng.randint(1, 6), 2 * rng.randint(1, 6)])
            # mostly the frame rates that are used, sometimes any
            rate = rng.choice([1, 2, 2, 2, 2, 4, 2.6, 1.3, rng.randint(10, 40) / 10])
            seconds.append(rng.choice([2 / rate, 2 / rate, rng.uniform(0.5, 2)]))
            text += "<|vision_bos|><|VIDEO|><|vision_eos|>"
        if kind == "audio" or (kind == "video" and sounding):
            audio_frames.append(rng.randint(3, 1500))
        text += TEXT * rng.choice([0, 0, rng.randint(1, 40)])
    text += TEXT * rng.choice([0, 1, rng.randint(1, 20)])
    audio_tokens = [((frames - 1) // 2 - 1) // 2 + 1 for frames in audio_frames]
    ids = expand(text, audio_tokens, images, videos, seconds, sounding)
    positions = positions_of(ids, audio_frames, images, videos, seconds, sounding)
    values, counts = ids.unique_consecutive(return_counts=True)
    return dict(
        runs=list(zip(values.tolist(), counts.tolist(), strict=True)),
        audio_tokens=audio_tokens,
        image_grids=images,
        video_grids=videos,
        seconds_per_pair=seconds,
        video_has_audio=[sounding] * len(videos),
        last=positions[:, -1].tolist(),
        disputed=sounding and any(map(is_disputed, videos, seconds)),
        positions=positions,
    )


def positions_of(
    ids: Tensor,
    audio_frames: list[int],
    images: list[list[int]],
    videos: list[list[int]],
    seconds: list[float],
    sounding: bool,
) -> Tensor:
    """The reference's positions [3,T], from the few parts of its model that they need."""
    config = SimpleNamespace(
        **{f"{name}_token_id": IDS[f"<|{name.upper()}|>"] for name in ("audio", "image", "video")},
        vision_start_token_id=IDS["<|vision_bos|>"],
        audio_start_token_id=IDS["<|audio_bos|>"],
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )
    model = modeling.Qwen2_5OmniPreTrainedModelForConditionalGeneration
    this = SimpleNamespace(config=config, spatial_merge_size=2)
    for name in ("get_rope_index", "get_llm_pos_ids_for_vision", "get_chunked_index"):
        setattr(this, name, MethodType(getattr(model, name), this))
    positions, _ = this.get_rope_index(
        ids[None],
        image_grid_thw=torch.tensor(images) if images else None,
        video_grid_thw=torch.tensor(videos) if videos else None,
        attention_mask=torch.ones_like(ids)[None],
        use_audio_in_video=sounding,
        audio_seqlens=torch.tensor(audio_frames),
        second_per_grids=torch.tensor(seconds),
    )
    return positions[:, 0]


def expand(
    text: str,
    audio_tokens: list[int],
    images: list[list[int]],
    videos: list[list[int]],
    seconds: list[float],
    sounding: bool,
) -> Tensor:
    """The reference's processor, and a tokenizer to which every TEXT is a token."""
    processor = processing.Qwen2_5OmniProcessor
    this = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2),
        video_processor=SimpleNamespace(merge_size=2),
        **{f"{marker.strip('<|>').lower()}_token": marker for marker in IDS if marker != TEXT},
    )
    this.get_chunked_index = MethodType(processor.get_chunked_index, this)
    [text] = processor.replace_multimodal_special_tokens(
        this,
        [text],
        iter(audio_tokens),
        iter(np.array(images)),
        iter(np.array(videos)),
        video_second_per_grid=iter(seconds),
        use_audio_in_video=sounding,
        position_id_per_seconds=25,
        seconds_per_chunk=2,
    )
    pieces = re.findall(r"<\|\w+\|>|" + re.escape(TEXT), text)
    assert sum(map(len, pieces)) == len(text), text
    return torch.tensor([IDS[piece] for piece in pieces])


def digest(positions: Tensor) -> str:
    return hashlib.sha256(positions.contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def is_disputed(video: list[int], seconds: float) -> bool:
    """Whether a 2 s border falls elsewhere in float64 (processor) than in float32 (positions)."""
    pairs = np.arange(video[0])
    wide = pairs * seconds * 25 // 50
    narrow = (pairs.astype(np.float32) * np.float32(seconds) * np.float32(25)).astype(int) // 50
    return bool((wide != narrow).any())


if __name__ == "__main__":
    main()
