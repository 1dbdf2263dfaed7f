"""The local upstream as tests and commands use it: started and stopped, in threads of this process."""

from __future__ import annotations

import threading

from pleiades.simulator.server import STREAM_PATH, Server
from pleiades.simulator.settings import SimulatorSettings
from pleiades.simulator.upstream import LocalUpstream

TICK_SECONDS = 0.005
"""The time between two rounds of appending; at 1,000 events/s five events a round."""
IDLE_TICK_SECONDS = 0.05


class Simulator(LocalUpstream):
    """A local upstream. `start` and `stop` may alternate: the log, the clock and the port stay, as when
    the real service is down for a while.

    Args:
        settings: None: the defaults.

    Raises:
        UsageError: a file of the settings can't be read or written.
    """

    def __init__(self, settings: SimulatorSettings | None = None) -> None:
        super().__init__(settings or SimulatorSettings())
        self._port = self.settings.port
        self._serving: tuple[Server, threading.Thread] | None = None

    def __enter__(self) -> Simulator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The base URL, to be followed by a slash and streams: `http://127.0.0.1:port/v2/stream`."""
        scheme = "http" if self.settings.tls is None else "https"
        return f"{scheme}://{self.settings.host}:{self._port}{STREAM_PATH}"

    def start(self) -> str:
        """Serve; returns `url`. Does nothing while it is serving.

        Raises:
            OSError: the address can't be used.
        """
        if self._serving is None:
            server = Server(self, (self.settings.host, self._port))
            self._port = int(server.server_address[1])
            tick_seconds = TICK_SECONDS if self.settings.rate > 0 else IDLE_TICK_SECONDS
            thread = threading.Thread(
                target=server.serve_forever, args=(tick_seconds,), name="simulator", daemon=True
            )
            thread.start()
            self._serving = server, thread
        return self.url

    def stop(self) -> None:
        """Close all connections, without a final chunk, and stop listening."""
        if self._serving is not None:
            server, thread = self._serving
            self._serving = None
            server.shutdown()
            thread.join()
            server.server_close()
