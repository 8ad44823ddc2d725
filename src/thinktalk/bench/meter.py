"""Repeated timing, and the peak of memory."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

FEWEST, LONGEST_S = 3, 1.5  # repetitions, and how long it is repeated


def median_ms(run: Callable[[], object], *, device: torch.device) -> float:
    """Of repeated runs, the first of which does not count."""
    run()
    times: list[float] = []
    while len(times) < FEWEST or sum(times) < LONGEST_S:
        start = now(device)
        run()
        times.append(now(device) - start)
    return 1000 * statistics.median(times)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    """From now on `peak_mib` is about what comes. On a CPU only Linux can forget."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: torch.device) -> float:
    """The most memory that was held: of the device's allocator on CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
