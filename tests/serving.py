"""A server on a free port of this machine, in a thread, for tests with real clients."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from thinktalk.live.api import Engine
from thinktalk.serve.app import ServeOptions, create_app


@contextmanager
def serving(engine: Engine, options: ServeOptions | None = None) -> Iterator[str]:
    """Yields the address, http://127.0.0.1:PORT; closes the engine afterwards."""
    config = uvicorn.Config(
        create_app(engine, options),
        host="127.0.0.1",
        port=0,
        log_level="warning",
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    server = _Ready(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    server.ready.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class _Ready(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        self.ready.set()
