"""The whole network has exactly the tensors of the official checkpoints, and reads them all."""

import json
import re
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import GEOMETRIES
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import thinktalk
from thinktalk.config import OmniConfig
from thinktalk.model.omni import Omni
from thinktalk.weights import NEVER_USED

NAMES = Path(__file__).parent / "golden" / "official_names.txt"
FILTER_TAPS = 12


def official_config(geometry: str) -> OmniConfig:
    """The sizes of the released 7B (our defaults) and 3B."""
    config = OmniConfig()
    if geometry == "7b":
        return config
    thinker, talker = config.thinker_config, config.talker_config
    text = replace(
        thinker.text_config, vocab_size=151936, hidden_size=2048, intermediate_size=11008,
        num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2,
    )  # fmt: skip
    thinker = replace(
        thinker,
        text_config=text,
        audio_config=replace(thinker.audio_config, output_dim=2048),
        vision_config=replace(thinker.vision_config, out_hidden_size=2048),
    )
    talker = replace(
        talker, embedding_size=2048, intermediate_size=4864, num_attention_heads=14,
        num_key_value_heads=2, head_dim=64, mrope_section=(16, 16, 0),
    )  # fmt: skip
    return replace(config, thinker_config=thinker, talker_config=talker)


def official_tensors(geometry: str) -> dict[str, list[int]]:
    """Name -> shape of everything in the released checkpoint, from the table in golden/."""
    tensors: dict[str, list[int]] = {}
    for line in NAMES.read_text().splitlines():
        if line.startswith("#"):
            continue
        pattern, *columns = line.split(" | ")
        count, shape = columns[-1 if geometry == "3b" else 0].split(" x ")
        names = expand(pattern, int(count))
        assert len(names) == int(count), line
        tensors |= {name: shape_of(name, shape) for name in names}
    return tensors


def expand(pattern: str, count: int) -> list[str]:
    """Replaces {i}, {r} (resblocks), {a} (activations) and {1..3} by their numbers."""
    ranges = {"{1..3}": range(1, 4), "{r}": range(18), "{a}": range(6)}
    found = re.findall(r"\{.*?\}", pattern)
    ranges["{i}"] = range(3 if "{r}" in found else count)
    names = []
    for numbers in product(*(ranges[key] for key in found)):
        name = pattern
        for key, number in zip(found, numbers, strict=True):
            name = name.replace(key, str(number), 1)
        names.append(name)
    return names


def shape_of(name: str, shape: str) -> list[int]:
    if match := re.search(r"resblocks\.(\d+)\.", name):
        block = int(match[1])
        channels, kernel = 768 >> block // 3, (3, 7, 11)[block % 3]
        shape = shape.replace("C", str(channels)).replace("K", str(kernel))
    return json.loads(shape)


@cache
def meta_omni(geometry: str) -> Omni:
    with torch.device("meta"):
        return Omni(official_config(geometry))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_official_names_and_shapes(geometry: str) -> None:
    ours = {name: list(tensor.shape) for name, tensor in meta_omni(geometry).state_dict().items()}
    theirs = official_tensors(geometry)
    assert sorted(ours.keys() ^ theirs.keys()) == []
    assert {name: ours[name] for name in theirs if ours[name] != theirs[name]} == {}
    assert len(ours) == {"7b": 2448, "3b": 2544}[geometry]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_official_counts(geometry: str) -> None:
    names = meta_omni(geometry).state_dict().keys()
    counts = {
        "thinker.audio_tower.": 489,
        "thinker.visual.": 518,
        "thinker.model.": {"7b": 338, "3b": 434}[geometry],
        "thinker.lm_head.": 1,
        "talker.": 293,
        "token2wav.code2wav_dit_model.": 360,
        "token2wav.code2wav_bigvgan_model.": 449,
    }
    assert {g: sum(name.startswith(g) for name in names) for g in counts} == counts
    parameters = sum(p.numel() for p in meta_omni(geometry).parameters())
    assert parameters == {"7b": 10_732_225_408, "3b": 5_537_120_640}[geometry]


def test_official_index_size() -> None:
    """The 7B index counts bfloat16 for Thinker and Talker, float32 for token2wav, and the buffers
    of the reference that it does not store: the sinusoid table and the vocoder's filters."""
    omni = meta_omni("7b")
    stored = sum(
        tensor.numel() * (4 if name.startswith("token2wav.") else 2)
        for name, tensor in omni.state_dict().items()
    )
    audio = omni.config.thinker_config.audio_config
    sinusoids = audio.max_source_positions * audio.d_model * 2
    num_activations = sum(name.endswith("act.alpha") for name in omni.state_dict())
    filters = 2 * num_activations * FILTER_TAPS * 4
    assert stored + sinusoids + filters == 22_366_403_936


class Reading(TorchFunctionMode):
    """Collects every parameter that any computation takes as an argument."""

    def __init__(self):
        super().__init__()
        self.seen: set[int] = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs or {}))
        if func.__name__ != "__get__":  # .dtype, .device and .shape read no numbers
            self.seen |= {id(leaf) for leaf in leaves if isinstance(leaf, nn.Parameter)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("geometry", "exact"), [("7b", False), ("3b", True)])
def test_every_parameter_is_read(tiny_checkpoint, geometry: str, exact: bool) -> None:
    """A question with all media and a spoken answer pass through all parameters but the listed."""
    model = thinktalk.load(tiny_checkpoint(geometry))
    content = [
        {"type": "audio", "audio": np.zeros(16_000, np.float32)},
        {"type": "image", "image": np.zeros((56, 56, 3), np.uint8)},
        {"type": "text", "text": "?"},
    ]
    with Reading() as reading:
        thinktalk.generate(
            model, [{"role": "user", "content": content}],
            exact=exact, max_text_tokens=3, max_codec_ids=30,
        )  # fmt: skip
    parameters = dict(model.omni.named_parameters())
    unread = {name for name, parameter in parameters.items() if id(parameter) not in reading.seen}
    assert unread == NEVER_USED.keys()
    assert all(len(reason) > 20 for reason in NEVER_USED.values())
