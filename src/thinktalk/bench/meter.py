"""Repeated timing, who had the processor, and the peak of memory."""

import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

FEWEST, LONGEST_S = 3, 1.5  # repetitions, and how long it is repeated


@dataclass(frozen=True)
class Spent:
    """ms on the clock, cpu_ms of the processor, all threads together."""

    ms: float
    cpu_ms: float

    def times(self, count: int) -> "Spent":
        return Spent(count * self.ms, count * self.cpu_ms)


def median_of(runs: Sequence[Spent]) -> Spent:
    return Spent(
        statistics.median(run.ms for run in runs), statistics.median(run.cpu_ms for run in runs)
    )


def repeat(run: Callable[[], object], *, device: torch.device) -> Spent:
    """Median of repeated runs, the first of which does not count."""
    run()
    runs: list[Spent] = []
    while len(runs) < FEWEST or sum(spent.ms for spent in runs) < 1000 * LONGEST_S:
        start, start_cpu = now(device), time.process_time()
        run()
        ms, cpu_ms = 1000 * (now(device) - start), 1000 * (time.process_time() - start_cpu)
        runs.append(Spent(ms, cpu_ms))
    return median_of(runs)


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Processor:
    """What this process, and what all others, used of the processor since it was made."""

    def __init__(self) -> None:
        self._start = self._read()

    def own_s(self) -> float:
        return self._read()[1] - self._start[1]

    def others_cores(self) -> float | None:
        """How many cores the others kept busy on average; None where only Linux could tell."""
        (start_s, own_s, all_s), (now_s, own_now_s, all_now_s) = self._start, self._read()
        if all_s is None or all_now_s is None:
            return None
        others_s = all_now_s - all_s - (own_now_s - own_s)
        return max(0.0, others_s / max(1e-9, now_s - start_s))

    def _read(self) -> tuple[float, float, float | None]:
        """Seconds: on the clock, of this process, of all."""
        every_s = None
        with suppress(OSError):
            words = Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
            user, nice, system, _idle, _waiting, *interrupts = map(int, words)
            every_s = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), every_s


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
