"""A built network and this process's place among others in; the same network spread over all out.

FSDP2: every block of decoders, encoders and DiT, and what is left around them, keeps a part of its
weights on every rank; they are whole while they compute. Nothing here changes what a network
computes, and on one process sharding changes nothing at all. Launched by torchrun, whose
environment tells every process its place.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from thinktalk.model.audio import AudioLayer
from thinktalk.model.decoder import DecoderLayer
from thinktalk.model.dit import DiT
from thinktalk.model.dit_layer import Layer
from thinktalk.model.vision import VisionBlock

T = TypeVar("T")

BLOCKS = (DecoderLayer, AudioLayer, VisionBlock, Layer)
# Ranks wait for one another while one of them prepares data or writes a checkpoint. Whoever dies
# is noticed at once, by the closed connection.
PATIENCE = timedelta(days=1)


@dataclass(frozen=True)
class Ranks:
    """This process's place: its number, how many there are, its number on this machine.

    The methods are for all ranks to call, in the same order; alone they do nothing.
    """

    rank: int
    world: int
    local: int
    device: torch.device
    group: dist.ProcessGroup | None  # gloo, for small things on the CPU; None alone

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def as_first(self, thing: T) -> T:
        """What rank 0 gives."""
        things = [thing]
        if self.group is not None:
            dist.broadcast_object_list(things, src=0, group=self.group)
        return things[0]

    def gathered(self, thing: T) -> list[T]:
        """What every rank gives, in the order of the ranks."""
        things: list[Any] = [thing] * self.world
        if self.group is not None:
            dist.all_gather_object(things, thing, group=self.group)
        return things

    def total(self, number: float) -> float:
        """The sum over all ranks."""
        value = torch.tensor(number, dtype=torch.float64)
        if self.group is not None:
            dist.all_reduce(value, group=self.group)
        return value.item()

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def in_turn(self, make: Callable[[], T]) -> T:
        """make(), first on rank 0, then once on every other machine, then on the rest.

        So what it leaves on a disk is made once and found by the others.
        """
        turn = 0 if self.is_first else 1 if self.local == 0 else 2
        made: list[T] = []
        for now in range(3 if self.group is not None else 1):
            if now == turn:
                made.append(make())
            self.wait()
        return made[0]

    def same_start(self, module: nn.Module) -> None:
        """Gives all ranks the weights and buffers of rank 0."""
        if self.group is None:
            return
        for tensor in (*module.parameters(), *module.buffers()):
            on_cpu = tensor.detach().to("cpu", copy=True)
            dist.broadcast(on_cpu, src=0, group=self.group)
            tensor.detach().copy_(on_cpu)


def join(device: str | torch.device = "cpu") -> Ranks:
    """This process's place; a process that torchrun did not start is alone.

    device: "cuda" becomes the GPU with the process's number on its machine.
    """
    device = torch.device(device)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Ranks(0, 1, 0, device, None)
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return Ranks(dist.get_rank(), world, local, device, new_group())


def new_group() -> dist.ProcessGroup:
    """All ranks again, for talk that must not mix with that of other threads."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), group
    return group


def leave() -> None:
    """Ends what join() began; nothing happens alone."""
    if dist.is_initialized():
        dist.destroy_process_group()


class Root(nn.Module):
    """Runs any function inside a forward pass, so that the weights around the blocks are whole.

    The parts of a network that are no blocks are used through many methods, and FSDP2 makes weights
    whole in forward() alone.
    """

    def __init__(self, parts: Iterable[nn.Module]):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, call: Callable[[], T]) -> T:
        return call()

    def spread_again(self) -> None:
        """After a pass without backward, whose whole weights would otherwise stay behind."""
        if isinstance(self, FSDPModule):
            self.reshard()


def shard(root: Root, ranks: Ranks, *, bfloat16: bool = False) -> None:
    """Spreads the weights over the ranks and moves everything to their device; in place.

    bfloat16: whole weights are in bfloat16, and so travel in half the time; parts of weights,
    sums of gradients and the optimizer stay in float32. All ranks must hold the same weights.
    Alone only the move is left.
    """
    if ranks.world == 1:
        root.to(ranks.device)
        return
    low, full = torch.bfloat16, torch.float32
    policy = MixedPrecisionPolicy(
        param_dtype=low if bfloat16 else None,
        reduce_dtype=full if bfloat16 else None,
        cast_forward_inputs=False,  # targets come with the inputs, and autocast does what is needed
    )
    mesh = init_device_mesh(ranks.device.type, (ranks.world,))
    for module in root.modules():
        if isinstance(module, DiT):  # they are used in front of the layers that own them
            layers = module.transformer_blocks
            norms = [layer.get_submodule("attn_norm.linear") for layer in layers]
            fully_shard(norms, mesh=mesh, mp_policy=policy)
    for block in blocks(root):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(root, mesh=mesh, mp_policy=policy)


def recompute(root: nn.Module) -> None:
    """Every block keeps its input alone for the backward pass, and computes the rest again."""
    for block in blocks(root):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_blocks(root: nn.Module, *, backend: str) -> None:
    """Every block's forward by torch.compile; before recompute() and shard()."""
    for block in blocks(root):
        block.forward = torch.compile(block.forward, backend=backend)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks in a network, in the order in which it names them."""
    return [part for part in module.modules() if isinstance(part, BLOCKS)]


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; shares its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()
