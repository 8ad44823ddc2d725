"""A folder, a hub id or "spark" -> the network with its weights and voices; and back to a folder.

Both directions speak the official layout: config.json, model.safetensors or shards with an index,
spk_dict.pt, tokenizer and preprocessor files. Our modules carry the official tensor names, so this
file renames nothing; it knows which names may be absent, superfluous or unused, and why.
"""

import json
import pickle
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from thinktalk.allocator import keep_freed_memory
from thinktalk.config import OmniConfig
from thinktalk.model.layers import rotary_frequencies
from thinktalk.model.omni import Omni, without_storage

CONFIG, VOICES, GENERATION = "config.json", "spk_dict.pt", "generation_config.json"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HUB_PATTERNS = ["*.json", "*.jinja", "*.safetensors", "merges.txt", VOICES]
# what travels with the weights unchanged: tokenizer, preprocessor, chat template, defaults
COMPANIONS = (
    "tokenizer.json tokenizer_config.json vocab.json merges.txt added_tokens.json"
    " special_tokens_map.json preprocessor_config.json processor_config.json"
    f" video_preprocessor_config.json chat_template.json chat_template.jinja {GENERATION}"
).split()

# Stored by some versions of transformers (4.x, 5.x), computed here from the configuration.
DIT_FREQUENCIES = "token2wav.code2wav_dit_model.rotary_embed.inv_freq"
# Tables that other exports may contain and that follow from the configuration: safe to ignore.
SUPERFLUOUS = re.compile(
    r"thinker\.audio_tower\.positional_embedding\..*"
    r"|thinker\.visual\.rotary_pos_emb\.inv_freq"
    r"|(thinker|talker)\.model\.(layers\.\d+\.self_attn\.)?rotary_emb\.(original_)?inv_freq"
    r"|token2wav\.code2wav_bigvgan_model\..*(up|down)sample\.filter"
)
# In every official checkpoint, but no computation reads it.
NEVER_USED = {
    "thinker.audio_tower.audio_bos_eos_token.weight": "the borders of a recording are the text"
    " tokens <|audio_bos|> and <|audio_eos|>; the reference keeps this table and never reads it",
}
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# What torch.load was seen to raise on damaged files, besides refusing code (UnpicklingError).
UNPICKLING_ERRORS = (pickle.UnpicklingError, struct.error, RuntimeError, ValueError, TypeError)
UNPICKLING_ERRORS += (LookupError, AttributeError, AssertionError, OSError, EOFError)
# Up to here one token at a time is faster in float32 than in bfloat16 on a CPU; above, memory
# traffic decides and bfloat16 wins (measured: 256 x 1024 against 2048 x 2048 matrices).
SMALL_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Voice:
    """How the Talker and the vocoder are told who speaks.

    bos_token: row of the Thinker's embedding that opens the speech; cond: float32 [1, enc_emb_dim];
    ref_mel: float32 [1, frames, mel_dim], a few seconds of the voice.
    """

    bos_token: int
    cond: Tensor
    ref_mel: Tensor


@dataclass(frozen=True)
class LoadedModel:
    """A network with its voices, and the folder that holds its tokenizer and preprocessor files."""

    omni: Omni
    voices: dict[str, Voice]
    folder: Path

    @property
    def config(self) -> OmniConfig:
        return self.omni.config

    @property
    def device(self) -> torch.device:
        return self.omni.thinker.lm_head.weight.device


def load(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    token2wav_dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """The model in evaluation mode on `device`; the peak of memory is the weights and one shard.

    name_or_path: "spark", a folder in the official layout, or a hub id such as
    "Qwen/Qwen2.5-Omni-7B" (downloaded once, with progress). dtype: of Thinker and Talker; by
    default as stored, but float32 for small models on a CPU. token2wav_dtype: of DiT and vocoder.
    Raises ValueError when something is missing, does not fit or is not readable.
    """
    device = usable_device(device)
    keep_freed_memory()
    folder = find(name_or_path)
    config = OmniConfig.from_dict(read_json(folder / CONFIG))
    omni = without_storage(config)
    shards = weight_files(folder)
    stored = check(shards, omni, folder=folder)
    if dtype is None:
        dtype = default_dtype(omni, stored, device=device)
    for path in tqdm(shards, desc=folder.name, delay=2, disable=None):
        tensors = read_shard(path, omni, device, dtypes=(dtype, token2wav_dtype))
        omni.load_state_dict(tensors, strict=False, assign=True)
    fill_in(omni, stored, device=device)
    return LoadedModel(omni.eval(), read_voices(folder / VOICES, config), folder)


def save(
    model: LoadedModel,
    folder: str | Path,
    *,
    shard_bytes: float = 5e9,
    dtype: torch.dtype | None = None,
    token2wav_dtype: torch.dtype | None = None,
) -> None:
    """Writes the official layout, which load() and transformers 4.57 and 5.x read.

    dtype and token2wav_dtype: as in load(); None keeps what is in memory. Tokenizer and
    preprocessor files are copied from model.folder. Files of an earlier save are replaced only
    once the new weights are complete.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = model.omni.state_dict()
    dtypes = {
        name: (token2wav_dtype if is_token2wav(name) else dtype) or tensor.dtype
        for name, tensor in state.items()
    } | {DIT_FREQUENCIES: torch.float32}
    write_weights(state, dtypes, folder, shard_bytes=shard_bytes)
    thinker = dtypes["thinker.lm_head.weight"]
    description = model.config.to_dict() | {"torch_dtype": str(thinker).removeprefix("torch.")}
    write_json(folder / CONFIG, description)
    torch.save({name: vars(voice) for name, voice in model.voices.items()}, folder / VOICES)
    for name in COMPANIONS:
        source = model.folder / name
        if source.is_file() and source.resolve() != (folder / name).resolve():
            shutil.copyfile(source, folder / name)
    if not (folder / GENERATION).exists():
        write_json(folder / GENERATION, {"_from_model_config": True})


# ---- where the files are


def find(name_or_path: str | Path) -> Path:
    """The folder that holds a checkpoint; a hub id is downloaded into the hub's own cache."""
    if name_or_path == "spark":
        return Path(str(files("thinktalk"))) / "spark"
    path, name = Path(name_or_path).expanduser(), str(name_or_path)
    if path.is_dir():
        return path
    if path.exists() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        raise ValueError(
            f"{name} is not a checkpoint: give a folder that holds {CONFIG}, a hub id such as "
            '"Qwen/Qwen2.5-Omni-7B", or "spark"'
        )
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name} is neither a folder nor could it be downloaded from the hub ({reason}); check "
            "the name, the connection and, for a private model, your login"
        ) from error


def weight_files(folder: Path) -> list[Path]:
    """The one file or all shards, in the order of their names."""
    if (folder / INDEX).exists():
        table = read_json(folder / INDEX).get("weight_map") or {}
        paths = [folder / name for name in sorted(set(table.values()))]
        missing = [path.name for path in paths if not path.exists()]
        if missing or not paths:
            raise ValueError(
                f"{folder / INDEX} names {listing(missing) or 'no files'}, which are not in the "
                "folder; download them again"
            )
        return paths
    if not (folder / SINGLE).exists():
        raise ValueError(f"{folder} holds neither {SINGLE} nor {INDEX}; is it a whole checkpoint?")
    return [folder / SINGLE]


# ---- reading


def check(shards: list[Path], omni: Omni, *, folder: Path) -> dict[str, str]:
    """Name -> stored dtype of everything, after comparing names, shapes and dtypes by the headers.

    Raises ValueError naming what is missing, unexpected or mis-shaped, before any weight is read.
    """
    expected = {name: list(tensor.shape) for name, tensor in omni.state_dict().items()}
    stored: dict[str, str] = {}
    misfits: list[str] = []
    for path in shards:
        with opened(path) as file:
            for name in file.keys():  # noqa: SIM118 (not a dict)
                view = file.get_slice(name)
                shape, stored[name] = list(view.get_shape()), view.get_dtype()
                if name in expected and shape != expected[name]:
                    misfits.append(f"{name} is {shape} instead of {expected[name]}")
                elif name in expected and stored[name] not in FLOATS:
                    misfits.append(f"{name} is stored as {stored[name]}, not as a float")
    missing = sorted(expected.keys() - stored.keys() - {DIT_FREQUENCIES})
    unexpected = sorted(
        name for name in stored.keys() - expected.keys() if not SUPERFLUOUS.fullmatch(name)
    )
    problems = [
        f"{len(names)} {what}: {listing(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("unfit", misfits))
        if names
    ]
    if problems:
        raise ValueError(
            f"the weights in {folder} do not fit its {CONFIG}: {'; '.join(problems)}. The folder "
            "is incomplete, of another model, or quantised"
        )
    return stored


def read_shard(
    path: Path, omni: Omni, device: torch.device, *, dtypes: tuple[torch.dtype, torch.dtype]
) -> dict[str, Tensor]:
    """What the network uses of one file, as copies (the file may be overwritten afterwards).

    dtypes: of Thinker and Talker, and of token2wav.
    """
    wanted = omni.state_dict().keys()
    tensors = {}
    with opened(path) as file:
        for name in file.keys():  # noqa: SIM118 (not a dict)
            if name in wanted:
                target = dtypes[is_token2wav(name)]
                target = torch.float32 if name == DIT_FREQUENCIES else target
                tensors[name] = file.get_tensor(name).to(device, target, copy=True)
    return tensors


def fill_in(omni: Omni, stored: Mapping[str, str], *, device: torch.device) -> None:
    """Computes the buffers that follow from the configuration; nothing stays without storage.

    The DiT's rotary frequencies only if the checkpoint did not store (rounded) ones.
    """
    if DIT_FREQUENCIES not in stored:
        config = omni.config.token2wav_config.dit_config
        values = rotary_frequencies(config.head_dim, theta=config.rope_theta, device=device)
        omni.load_state_dict({DIT_FREQUENCIES: values}, strict=False, assign=True)
    for module in omni.modules():
        if reset := getattr(module, "reset_buffers", None):
            reset()
    left = [n for n, t in (*omni.named_parameters(), *omni.named_buffers()) if t.is_meta]
    assert not left, f"built without storage and never filled in: {left}"


def default_dtype(omni: Omni, stored: Mapping[str, str], *, device: torch.device) -> torch.dtype:
    small = sum(parameter.numel() for parameter in omni.parameters()) <= SMALL_PARAMETERS
    on_cpu = device.type == "cpu"
    return torch.float32 if small and on_cpu else FLOATS[stored["thinker.lm_head.weight"]]


def read_voices(path: Path, config: OmniConfig) -> dict[str, Voice]:
    """The voices by name, in the file's order; none when there is no file.

    The format is a pickle; only plain containers and tensors are accepted, nothing is executed.
    """
    if not path.exists():
        return {}
    try:
        entries = torch.load(path, map_location="cpu", weights_only=True)
    except UNPICKLING_ERRORS as error:
        raise ValueError(
            f"{path} is refused: a file of voices holds plain numbers and tensors only, this one "
            "is damaged or would run code. Take it from the official model again"
        ) from error
    dit = config.token2wav_config.dit_config
    voices = {}
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        match entry:
            case {
                "bos_token": int(token),
                "cond": Tensor() as cond,
                "ref_mel": Tensor() as mel,
            } if (
                0 <= token < config.thinker_config.text_config.vocab_size
                and cond.shape == (1, dit.enc_emb_dim)
                and mel.shape[:1] + mel.shape[2:] == (1, dit.mel_dim)
            ):
                voices[name] = Voice(token, cond.float(), mel.float())
            case _:
                raise ValueError(
                    f"{path}: voice {name!r} needs a bos_token of the vocabulary, cond "
                    f"[1, {dit.enc_emb_dim}] and ref_mel [1, frames, {dit.mel_dim}]"
                )
    if not voices:
        raise ValueError(f"{path} holds no voices; remove it, or take it from the official model")
    return voices


# ---- writing


def write_weights(
    state: Mapping[str, Tensor],
    dtypes: Mapping[str, torch.dtype],
    folder: Path,
    *,
    shard_bytes: float,
) -> None:
    """One file, or shards of at most `shard_bytes` with an index; only one is in memory at once."""
    shards: list[list[str]] = [[]]
    sizes = {name: tensor.numel() * dtypes[name].itemsize for name, tensor in state.items()}
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[n] for n in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    count = len(shards)
    paths = [folder / f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    if count == 1:
        paths = [folder / SINGLE]
    for path, names in zip(paths, shards, strict=True):
        save_file(
            {name: state[name].detach().to("cpu", dtypes[name]).contiguous() for name in names},
            partial(path),
            metadata={"format": "pt"},
        )
    for old in (*folder.glob("model-*-of-*.safetensors"), folder / SINGLE, folder / INDEX):
        old.unlink(missing_ok=True)
    for path in paths:
        partial(path).rename(path)
    if count > 1:
        table = {n: p.name for p, names in zip(paths, shards, strict=True) for n in names}
        total = {"total_size": sum(sizes.values())}
        write_json(folder / INDEX, {"metadata": total, "weight_map": table})


def usable_device(device: torch.device | str) -> torch.device:
    try:
        usable = torch.device(device)
        torch.empty(0, device=usable)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f'device "{device}" cannot be used here ({reason}); try "cpu"') from error
    return usable


def is_token2wav(name: str) -> bool:
    return name.startswith("token2wav.")


def partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def listing(names: list[str], *, limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file on the CPU; what makes it unreadable becomes one clear sentence."""
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); download or save it again") from error


def read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; is the folder a whole checkpoint?")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold one JSON object")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
