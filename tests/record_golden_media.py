"""Records what the processors and the tokenizer of transformers 5.17.0 make of our samples.

Run by hand, where that transformers is installed: python tests/record_golden_media.py
Writes tests/golden/media.safetensors, which the tests of media/ read. All samples come from
formulas (media_samples.py), so a second run changes nothing.
"""

import hashlib
import tempfile
from pathlib import Path

import media_samples as samples
import numpy as np
from reference import transformers  # first: it makes the rest importable
from safetensors.numpy import save_file

assert transformers.__version__ == "5.17.0", transformers.__version__
TARGET = Path(__file__).parent / "golden" / "media.safetensors"
MEL_STEP = 7  # every 7th frame is stored
IMAGE_LIMITS = dict(min_pixels=56 * 56, max_pixels=12_845_056)
TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<|im_start|>system\n"
    "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_bos|><|IMAGE|><|vision_eos|>"
    "{% elif c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif c['type'] == 'video' %}<|vision_bos|><|VIDEO|><|vision_eos|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Golden = dict[str, np.ndarray]


def mels() -> Golden:
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=128, sampling_rate=16000, hop_length=160, n_fft=400, chunk_length=300
    )
    golden = {}
    for name in samples.WAVES:
        out = extractor(
            samples.wave(name),
            sampling_rate=16000,
            padding="max_length",
            return_attention_mask=True,
            return_tensors="np",
        )
        num_frames = int(out["attention_mask"].sum())
        mel = out["input_features"][0, :, :num_frames]
        golden[f"mel.{name}"] = np.ascontiguousarray(mel[:, ::MEL_STEP])
        golden[f"mel_frames.{name}"] = np.array(num_frames)
    return golden


def pictures_and_films() -> Golden:
    image_processor = transformers.Qwen2VLImageProcessor(**IMAGE_LIMITS)
    pil_processor = transformers.models.qwen2_vl.image_processing_pil_qwen2_vl
    pil_processor = pil_processor.Qwen2VLImageProcessorPil(**IMAGE_LIMITS)
    video_processor = transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False)
    golden = {}
    for height, width in samples.PICTURES:
        image, key = samples.picture(height, width), f"image.{height}x{width}"
        out = image_processor(images=[image], return_tensors="np")
        golden |= _patches(key, out["pixel_values"], out["image_grid_thw"][0])
        slow = pil_processor(images=[image], return_tensors="np")["pixel_values"]
        far = np.abs(slow - out["pixel_values"])
        share = (far > 1e-3).mean()  # more than rounding of float32
        print(key, f"Pillow differs in {share:.2%} of the values, by at most {far.max():.3f}")
    for number, height, width in samples.FILMS:
        film = samples.frames(number, height, width).transpose(0, 3, 1, 2)
        out = video_processor(videos=[film], return_tensors="np")
        key = f"video.{number}x{height}x{width}"
        golden |= _patches(key, out["pixel_values_videos"], out["video_grid_thw"][0])
    return golden


def prompts(folder: Path) -> Golden:
    """Expanded ids of the reference's processor; the sizes of videos are the tests' own."""
    processor = transformers.Qwen2_5OmniProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**IMAGE_LIMITS),
        video_processor=transformers.Qwen2VLVideoProcessor(cap_pixels_per_frame=False),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=128),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        chat_template=TEMPLATE,
    )
    golden = {}
    for name, (parts, fps) in samples.PROMPTS.items():
        content, images, audio, videos = [], [], [], []
        for kind, *details in parts:
            content.append({"type": kind} | ({"text": details[0]} if kind == "text" else {}))
            if kind == "image":
                images.append(samples.picture(*details))
            elif kind == "audio":
                audio.append(samples.wave(details[0]))
            elif kind == "video":
                film, sound = details
                videos.append(samples.frames(*film).transpose(0, 3, 1, 2))
                audio += [samples.wave(sound)] if sound else []
        messages = [
            {"role": "system", "content": [{"type": "text", "text": "You are helpful."}]},
            {"role": "user", "content": content},
        ]
        text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        sounding = any(kind == "video" and details[1] for kind, *details in parts)
        size = {"shortest_edge": samples.VIDEO_PIXELS, "longest_edge": samples.VIDEO_PIXELS}
        out = processor(
            text=[text],
            images=images or None,
            audio=audio or None,
            videos=videos or None,
            return_tensors="np",
            videos_kwargs={"use_audio_in_video": sounding, "fps": fps, "size": size},
        )
        golden[f"prompt.{name}"] = out["input_ids"][0].astype(np.int32)
    return golden


def tokens(folder: Path) -> Golden:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = {f"text.{i}": tokenizer(text)["input_ids"] for i, text in enumerate(samples.TEXTS)}
    return {key: np.array(value, np.int32) for key, value in ids.items()}


def _patches(key: str, patches: np.ndarray, grid: np.ndarray) -> Golden:
    """A digest of all, and one row to look at when it differs."""
    digest = hashlib.sha256(np.ascontiguousarray(patches, np.float32).tobytes()).digest()
    return {
        f"{key}.grid": np.array(grid, np.int32),
        f"{key}.sha256": np.frombuffer(digest, np.uint8),
        f"{key}.row": patches[len(patches) // 2].astype(np.float32),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        samples.write_tokenizer(folder)
        golden = mels() | pictures_and_films() | prompts(folder) | tokens(folder)
    save_file(golden, TARGET)
    print(f"{len(golden)} tensors, {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
