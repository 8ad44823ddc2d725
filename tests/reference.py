"""The installed transformers, importable beside a CPU torch: what tests marked `reference` use.

`from reference import transformers`. A torchvision built for CUDA lacks its compiled operators
beside a CPU torch; none of them is needed, but two must be declared before it can be imported.
"""

import importlib.util

import torch

if importlib.util.find_spec("torchvision") is not None and not torch.cuda.is_available():
    declared = torch.library.Library("torchvision", "DEF")  # kept alive: it dies with its name
    for operator in ("nms", "qnms"):
        declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import transformers

transformers.utils.logging.set_verbosity_error()

__all__ = ["transformers"]
