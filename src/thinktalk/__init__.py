"""thinktalk: Qwen2.5-Omni in clean PyTorch. The public names; each is imported when first used."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thinktalk.generate import Answer, generate
    from thinktalk.live.engine import live
    from thinktalk.live.stream import stream
    from thinktalk.options import Sampling, SemanticVad, ServerVad, Settings
    from thinktalk.weights import load

__all__ = [
    "load",
    "generate",
    "stream",
    "live",
    "Answer",
    "Sampling",
    "Settings",
    "ServerVad",
    "SemanticVad",
]
__version__ = "0.1.0.dev0"

_OWNERS = {
    "load": "thinktalk.weights",
    "generate": "thinktalk.generate",
    "Answer": "thinktalk.generate",
    "stream": "thinktalk.live.stream",
    "live": "thinktalk.live.engine",
    "Sampling": "thinktalk.options",
    "Settings": "thinktalk.options",
    "ServerVad": "thinktalk.options",
    "SemanticVad": "thinktalk.options",
}


def __getattr__(name: str) -> Any:
    if name not in _OWNERS:
        raise AttributeError(f"module 'thinktalk' has no attribute {name!r}")
    value = getattr(import_module(_OWNERS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """`thinktalk.generate` is the function, although a file has the same name: importing a
    submodule sets it as an attribute of its package, which must not hide the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _OWNERS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
