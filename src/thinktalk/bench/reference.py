"""The installed transformers, importable beside a torch without a GPU.

A torchvision that was built for CUDA lacks its compiled operators beside a CPU torch; none of them
is needed, but transformers imports it where it is installed, and two operators must be declared
before that can work.
"""

import importlib.util

import torch

if importlib.util.find_spec("torchvision") is not None and not torch.cuda.is_available():
    declared = torch.library.Library("torchvision", "DEF")  # kept alive: it dies with its name
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers  # pyright: ignore[reportMissingImports]

transformers.utils.logging.set_verbosity_error()

__all__ = ["transformers"]
