"""LoRA (Hu et al. 2022) from outside: linear layers of a built network in, low-rank additions out.

An added layer computes W x + scale B A x; W stays as it is. Folders are in peft's layout, so that
additions travel both ways; peft itself is not needed. Shapes: r rank, n inputs, m outputs.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every name in a file of peft's
DOWN, UP = "lora_A", "lora_B"
ENDS = (f".{DOWN}.weight", f".{UP}.weight")
# What peft can do besides and we cannot; by the value that says that it was not done.
UNKNOWN = {
    "use_dora": False, "bias": "none", "fan_in_fan_out": False, "lora_bias": False,
    "modules_to_save": None, "layer_replication": None, "trainable_token_indices": None,
}  # fmt: skip


@dataclass(frozen=True)
class Lora:
    """Additions of rank r, scaled by alpha / r; dropout: of what goes into them, in training.

    targets: patterns (as of file names) of the names of linear layers.
    """

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("thinker.model.layers.*_proj",)

    def __post_init__(self) -> None:
        if self.r < 1 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"LoRA of rank {self.r} with dropout {self.dropout} is impossible; the rank is at "
                "least 1, the dropout from 0 to below 1"
            )


def add(module: nn.Module, lora: Lora) -> nn.Module:
    """Puts additions on the targets, in place; returns the additions alone.

    They compute nothing at first (B is zero). They are the only weights that learn, and their names
    are those in the module. Raises ValueError for a pattern that fits no linear layer.
    """
    chosen: list[str] = []
    linear = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    for pattern in lora.targets:
        names = [name for name in linear if fnmatchcase(name, pattern)]
        if not names:
            raise ValueError(f"no linear layer is called {pattern!r}; names are like {linear[0]!r}")
        chosen += names
    module.requires_grad_(False)
    for name in dict.fromkeys(chosen):
        _replace(module, name, lora.r, scale=lora.alpha / lora.r, dropout=lora.dropout)
    return additions(module)


def additions(module: nn.Module) -> nn.Module:
    """A tree that holds the additions of a module, and nothing else, under their names in it."""
    tree = nn.Module()
    for name, part in _added(module):
        for end in (DOWN, UP):
            at = tree
            for step in name.split("."):
                if step not in at._modules:
                    at.add_module(step, nn.Module())
                at = at.get_submodule(step)
            at.add_module(end, part.get_submodule(end))
    return tree


@torch.no_grad()
def merge(module: nn.Module) -> None:
    """Adds the additions to the weights and removes them, in place."""
    for name, part in list(_added(module)):
        layer = nn.Linear(1, 1, bias=False, device="meta")
        layer.out_features, layer.in_features = part.weight.shape
        added = part.scale * (part.lora_B.weight.float() @ part.lora_A.weight.float())
        whole = (part.weight.float() + added).to(part.weight.dtype)
        layer.weight = nn.Parameter(whole, requires_grad=part.weight.requires_grad)
        layer.bias = part.bias
        _put(module, name, layer)


def save(weights: Mapping[str, Tensor], lora: Lora, folder: Path, *, base: str) -> None:
    """Writes additions, by their names in the whole network, as peft does. base: of what model."""
    names = [name for name in weights if name.endswith(ENDS)]
    layers = sorted({name.rpartition(f".{end}.")[0] for name in names for end in (DOWN, UP)} - {""})
    description = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base,
        "r": lora.r,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": layers,
        "use_rslora": False,
        "init_lora_weights": True,
        "inference_mode": True,
        **UNKNOWN,
    }
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: weights[name].detach().cpu().contiguous() for name in names}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def load(module: nn.Module, folder: Path) -> nn.Module:
    """Puts the additions in a folder on a whole network, in place; returns them alone.

    The folder is ours or peft's, of the whole model or (as most trainers have it) of its Thinker
    alone. Raises ValueError for what is missing, of another geometry or beyond plain LoRA.
    """
    description = _description(folder)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read ({error}); save it again") from error
    module.requires_grad_(False)
    pairs: dict[str, dict[str, Tensor]] = {}
    linear = {name for name, part in module.named_modules() if isinstance(part, nn.Linear)}
    for name, tensor in tensors.items():
        layer, _, end = name.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        known = next((n for n in (layer, f"thinker.{layer}") if n in linear), None)
        if known is None or end not in (DOWN, UP):
            raise ValueError(f"{folder} holds {name}, but this model has no such layer")
        pairs.setdefault(known, {})[end] = tensor
    for layer, pair in pairs.items():
        _check_fit(pair, module.get_parameter(f"{layer}.weight"), f"{folder}: {layer}")
        rank, alpha = len(pair[DOWN]), _alpha(description, layer)
        added = _replace(
            module,
            layer,
            rank,
            scale=alpha / (math.sqrt(rank) if description.get("use_rslora") else rank),
            dropout=description.get("lora_dropout", 0.0),
        )
        with torch.no_grad():
            added.lora_A.weight.copy_(pair[DOWN])
            added.lora_B.weight.copy_(pair[UP])
    return additions(module)


class LoraLinear(nn.Module):
    """A linear layer whose weights stay, and its addition."""

    def __init__(self, layer: nn.Linear, r: int, *, scale: float, dropout: float):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        size = {"dtype": torch.float32, "device": layer.weight.device, "bias": False}
        self.lora_A = nn.Linear(layer.in_features, r, **size)
        self.lora_B = nn.Linear(r, layer.out_features, **size)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """[..., n] -> [..., m]."""
        y = F.linear(x, self.weight, self.bias)
        # the mode is that of the addition: a task trains it while the rest stays as it is
        dropped = F.dropout(x, self.dropout, training=self.lora_A.training)
        added = self.lora_B(self.lora_A(dropped.to(self.lora_A.weight.dtype)))
        return y + (self.scale * added).to(y.dtype)


def _replace(module: nn.Module, name: str, r: int, *, scale: float, dropout: float) -> LoraLinear:
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear), (name, layer)
    added = LoraLinear(layer, r, scale=scale, dropout=dropout)
    _put(module, name, added)
    return added


def _put(module: nn.Module, name: str, part: nn.Module) -> None:
    above, _, last = name.rpartition(".")
    setattr(module.get_submodule(above), last, part)


def _added(module: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((n, part) for n, part in module.named_modules() if isinstance(part, LoraLinear))


def _description(folder: Path) -> dict[str, Any]:
    try:
        description = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder / CONFIG} cannot be read ({error}); is it an adapter?"
        ) from error
    if description.get("peft_type") != "LORA":
        raise ValueError(
            f"{folder} is a {description.get('peft_type')} adapter; only LORA is known"
        )
    for name, usual in UNKNOWN.items():
        if (description.get(name) or usual) != usual:
            raise ValueError(
                f"{folder} has {name}={description[name]!r}, which is not supported; merge it with "
                "peft"
            )
    return description


def _check_fit(pair: Mapping[str, Tensor], weight: Tensor, place: str) -> None:
    shapes = [tuple(pair[end].shape) if end in pair else None for end in (DOWN, UP)]
    (down, up), (m, n) = shapes, weight.shape
    if not (down and up and (down[1], up) == (n, (m, down[0]))):
        raise ValueError(
            f"{place} has additions of the shapes {down} and {up}, which do not fit its weights "
            f"{(m, n)}; were they trained on another model?"
        )


def _alpha(description: Mapping[str, Any], layer: str) -> float:
    for pattern, alpha in (description.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return float(alpha)
    return float(description["lora_alpha"])
