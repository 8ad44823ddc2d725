"""The whole network; its state dict has exactly the names of the official checkpoints."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from thinktalk.config import OmniConfig
from thinktalk.model.code2wav import Token2Wav
from thinktalk.model.talker import Talker
from thinktalk.model.thinker import Thinker


class Omni(nn.Module):
    """Thinker writes, Talker turns that into codec ids, Token2Wav turns ids into sound."""

    def __init__(self, config: OmniConfig):
        super().__init__()
        self.config = config
        self.thinker = Thinker(config.thinker_config)
        self.talker = Talker(config.talker_config)
        self.token2wav = Token2Wav(config.token2wav_config)


def without_storage(config: OmniConfig) -> Omni:
    """The network on the meta device: names and shapes, and no work to initialise anything."""
    with torch.device("meta"), _NoInitialisation():
        return Omni(config)


class _NoInitialisation(TorchFunctionMode):
    """Leaves tensors as they are: on the meta device torch would import a compiler to fill them."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
