"""Runs a function on several ranks as torchrun would: real processes that talk by gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from thinktalk import parallel

# Processes are forked from one that has imported everything, and nothing else: quick and clean.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "thinktalk.train.omni"])


def on_ranks(work: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
    """What work(*arguments) returns on every rank; it must be a module's function."""
    results, codes = run_ranks(work, *arguments, world=world)
    assert codes == [0] * world, codes
    return results


def run_ranks(
    work: Callable[..., Any], *arguments: Any, world: int = 2
) -> tuple[list[Any], list[int | None]]:
    """Results and exit codes. When one rank dies the others are killed, as torchrun does it."""
    port = free_port()
    ends = [CONTEXT.Pipe(duplex=False) for _ in range(world)]
    processes = [
        CONTEXT.Process(target=_work, args=(rank, world, port, end, work, arguments))
        for rank, (_, end) in enumerate(ends)
    ]
    for process in processes:
        process.start()
    for _, end in ends:
        end.close()
    results: list[Any] = [None] * world
    open_ends = {receiving: rank for rank, (receiving, _) in enumerate(ends)}
    while open_ends:
        for receiving in wait(list(open_ends)):
            assert isinstance(receiving, Connection)
            rank = open_ends[receiving]
            try:
                results[rank] = receiving.recv()
            except EOFError:
                del open_ends[receiving]
                processes[rank].join()
                if processes[rank].exitcode:
                    for process in processes:
                        process.kill()
    for process in processes:
        process.join()
    return results, [process.exitcode for process in processes]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _work(
    rank: int,
    world: int,
    port: int,
    end: Connection,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    end.send(work(*arguments))
    parallel.leave()
