"""The voice as jobs: copies of what a few replies are made of in, their samples out.

A job touches nothing but its own copies, so any thread may render it: on a CPU a few threads of
their own do, while the engine's lets everybody think and speak on. A reply has one job at most at a
time. If it is over when its job comes back, the job is forgotten: nothing else knows of it.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import torch
from torch import Tensor

from thinktalk.live.speak import Reply
from thinktalk.model.code2wav import VoiceState

SMALL_WIDTH = 512  # of a DiT: products of no more gain nothing from a second thread
_switch = threading.Lock()


@dataclass
class VoiceJob:
    """The next blocks of some replies, a row each: see Token2Wav.step. state: copies, in which the
    rows move on. waves: what came of it; error: why nothing did."""

    replies: list[Reply]
    state: VoiceState
    ids: Tensor
    counts: Tensor
    waves: list[Tensor] = field(default_factory=list)
    error: Exception | None = None


class VoiceWorkers:
    """Threads that render jobs, each with one thread of torch; with none, `submit` renders."""

    def __init__(self, count: int, *, render: Callable[[VoiceJob], None], wake: Callable[[], None]):
        """render: fills a job's waves. wake: called by a thread whenever a job is done."""
        self._render, self._wake = render, wake
        self._todo: SimpleQueue[VoiceJob | None] = SimpleQueue()
        self._done: SimpleQueue[VoiceJob] = SimpleQueue()
        self.num_busy = 0  # jobs that were submitted and not yet taken; the engine's thread counts
        self._threads = [
            threading.Thread(target=self._run, name=f"thinktalk-voice-{n}", daemon=True)
            for n in range(count)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_threads(self) -> int:
        return len(self._threads)

    @property
    def num_idle(self) -> int:
        return max(1, self.num_threads) - self.num_busy

    def submit(self, job: VoiceJob, *, here: bool = False) -> None:
        """here: in the calling thread, whatever others there are."""
        if self._threads and not here:
            self._todo.put(job)
        else:
            self._finish(job)
        self.num_busy += 1

    def finished(self) -> list[VoiceJob]:
        """Jobs that are done, in the order in which they were."""
        jobs = []
        while True:
            try:
                jobs.append(self._done.get_nowait())
            except Empty:
                self.num_busy -= len(jobs)
                return jobs

    def close(self) -> None:
        """Returns when no thread computes any more; what was submitted is still rendered."""
        for _ in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        compute_with(1)
        while (job := self._todo.get()) is not None:
            self._finish(job)
            self._wake()

    def _finish(self, job: VoiceJob) -> None:
        try:
            with torch.inference_mode():
                self._render(job)
        except Exception as error:  # the edge of the job: its sessions must learn of it
            job.error = error
        self._done.put(job)


def num_voice_threads(wanted: int | None, *, width: int, device: torch.device, live: bool) -> int:
    """How many threads render the voice. wanted: None chooses as many as torch computes with, for
    a small DiT on a CPU; for the official ones the products themselves are better shared out.
    width: of the DiT. live: whether the engine has a thread itself. Raises ValueError for what
    cannot be."""
    if wanted is None:
        usual = torch.get_num_threads()
        fits = live and device.type == "cpu" and width <= SMALL_WIDTH
        return usual if fits and usual > 1 else 0
    if wanted < 0 or (wanted and (not live or device.type != "cpu")):
        raise ValueError(
            f"voice_threads is {wanted}; use 0, or on a CPU, for an engine with a thread, more"
        )
    return wanted


def compute_with(threads: int) -> None:
    """Has torch share the products of the calling thread among so many; those of all others stay
    as they are.

    torch.set_num_threads is about its caller, and about threads that have not computed yet: these
    will ask once for the number that was set last. So a thread that ends at once sets it back.
    """
    torch.get_num_threads()  # now this thread has asked
    with _switch:
        usual = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(threads)
        _in_new_thread(lambda: torch.set_num_threads(usual))


def _in_new_thread(work: Callable[[], Any]) -> Any:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]
