"""What Prometheus may read at /metrics: latencies by stage, sessions, the line, the engine's own.

Latencies are seconds from the end of the user's turn (or the request) to the moment in question.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from thinktalk.media.mel import VOICE_HZ

if TYPE_CHECKING:
    from thinktalk.serve.sessions import Sessions

STAGES = ("first_text", "first_audio", "done", "transcript")
SECONDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60)


class Metrics:
    """Counters of one server; every server has its own registry."""

    def __init__(self, sessions: Sessions):
        self.registry = CollectorRegistry()
        self.latency = Histogram(
            "thinktalk_latency_seconds",
            "from the end of the user's turn to a stage of the reply",
            ("stage", "endpoint"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.requests = Counter(
            "thinktalk_requests", "HTTP requests", ("path", "status"), registry=self.registry
        )
        self.connections = Counter(
            "thinktalk_realtime_connections",
            "Realtime connections by how they began or ended",
            ("what",),
            registry=self.registry,
        )
        self.underruns = Counter(
            "thinktalk_underruns",
            "times that a listener who plays at once ran out of sound",
            ("endpoint",),
            registry=self.registry,
        )
        self.underrun_seconds = Counter(
            "thinktalk_underrun_seconds",
            "silence that such a listener heard inside replies",
            ("endpoint",),
            registry=self.registry,
        )
        self.audio_seconds = Counter(
            "thinktalk_audio_seconds", "sound that was sent", ("endpoint",), registry=self.registry
        )
        self.registry.register(_Gauges(sessions))

    def page(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def stopwatch(self, endpoint: str) -> Stopwatch:
        """Begins now, at the end of the user's turn."""
        return Stopwatch(self, endpoint)


class Stopwatch:
    """Times one reply, and plays its sound on paper: sound that arrives after the sound before it
    has been played is an underrun."""

    def __init__(self, metrics: Metrics, endpoint: str):
        self._metrics, self._endpoint = metrics, endpoint
        self._began = time.perf_counter()
        self._seen: dict[str, float] = {}
        self._played_until = 0.0

    def stage(self, name: str) -> None:
        """Notes the first time that a stage is reached."""
        assert name in STAGES, name
        if name not in self._seen:
            self._seen[name] = time.perf_counter() - self._began
            self._metrics.latency.labels(name, self._endpoint).observe(self._seen[name])

    def sound(self, num_samples: int) -> None:
        """Notes sound that was just sent."""
        now = time.perf_counter()
        if "first_audio" not in self._seen:
            self.stage("first_audio")
            self._played_until = now
        elif (late := now - self._played_until) > 0:
            self._metrics.underruns.labels(self._endpoint).inc()
            self._metrics.underrun_seconds.labels(self._endpoint).inc(late)
            self._played_until = now
        self._played_until += num_samples / VOICE_HZ
        self._metrics.audio_seconds.labels(self._endpoint).inc(num_samples / VOICE_HZ)

    def seconds(self, stage: str) -> float | None:
        return self._seen.get(stage)


class _Gauges(Collector):
    """Read at every scrape: what the server and the engine hold right now."""

    def __init__(self, sessions: Sessions):
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        gauges: dict[str, tuple[float, str]] = {
            "thinktalk_sessions": (self._sessions.num_open, "open sessions"),
            "thinktalk_waiting": (self._sessions.num_waiting, "requests that wait for a session"),
        }
        for name, value in self._sessions.engine.stats().items():
            gauges[f"thinktalk_engine_{name}"] = (value, "see docs/protocol.md")
        for name, (value, what) in gauges.items():
            yield GaugeMetricFamily(name, what, value=value)
