"""A checkpoint in; one of the same architecture that has learned nothing out, for stages to begin.

Of the old one stays what is not learned: its numbers, tokenizer and preprocessor files, and voices.
A speech encoder is learned, so there is none before the stage `tokenizer`.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError

from thinktalk.config import OmniConfig
from thinktalk.model.omni import Omni
from thinktalk.weights import CONFIG, VOICES, LoadedModel, find, read_json, read_voices, save


def write_untrained(like: str | Path, out: Path, *, seed: int = 0) -> None:
    """Writes random weights, in float32 so that no stage rounds what the ones before have learned.

    like: as weights.load takes it. Raises ValueError where `out` holds something or cannot be
    written.
    """
    base = find(like)
    config = OmniConfig.from_dict(read_json(base / CONFIG))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already; give a new folder for the untrained checkpoint")
    torch.manual_seed(seed)
    model = LoadedModel(Omni(config).eval(), read_voices(base / VOICES, config), base)
    try:
        save(model, out)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{out} cannot be written ({error})") from error
