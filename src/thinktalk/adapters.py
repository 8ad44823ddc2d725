"""LoRA (Hu et al. 2022) from outside: linear layers of a built network in, low-rank additions out.

Files are in peft's layout, so that adapters travel both ways.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lora:
    """r: rank; alpha / r scales the addition; targets: patterns of the names of linear layers."""

    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("thinker.model.layers.*_proj",)
