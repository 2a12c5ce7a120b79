"""Wires what watches an aggregator: logs, metrics, traces, and the live page beside it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from compeft_server.app.logs import LogFormat, configure_logs
from compeft_server.app.tracing import CallTracer, tracer_from_environment
from compeft_server.domain.price import Price
from compeft_server.ledger.ledger import Ledger
from compeft_server.rpc.call_interceptor import CallMetrics, Observer

if TYPE_CHECKING:
    from compeft_server.dashboard.server import ListenAddress, Web


@dataclass(slots=True)
class Observed:
    """What `serve` needs of it. `web_port` is where the live page listens, 0 while it does not."""

    data: Path
    web: int | None
    price: Price | None
    tracer: CallTracer | None
    calls: CollectorRegistry = field(default_factory=CollectorRegistry)
    web_port: int = 0
    observer: Observer = field(init=False)

    def __post_init__(self) -> None:
        self.observer = Observer(CallMetrics(self.calls), self.tracer)

    @contextmanager
    def beside(self, ledger: Ledger) -> Iterator[None]:
        """The live page, if one is wanted, as long as the aggregator serves; then the last traces are sent."""
        try:
            if self.web is None:
                yield
                return
            from compeft_server.dashboard.server import ListenAddress

            page = live_page(self.data, ledger, ListenAddress(port=self.web), self.price, self.calls)
            with page.beside() as self.web_port:
                yield
        finally:
            if self.tracer is not None:
                self.tracer.close()


def live_page(
    data: Path, ledger: Ledger, listen: "ListenAddress", price: Price | None, calls: CollectorRegistry | None = None
) -> "Web":
    """The live page of a data directory, which listens when it runs. calls: counters of an aggregator in this process, for /metrics."""
    from compeft_server.dashboard.metrics import Registry
    from compeft_server.dashboard.server import Web

    return Web(data, ledger, listen, price, Registry(data, ledger, calls))


def observe(data: Path, web: int | None, price: Price | None, log_format: LogFormat) -> Observed:
    """Set up logs and traces; the page starts with the aggregator. `web` is its port, None for no page."""
    configure_logs(log_format)
    return Observed(data, web, price, tracer_from_environment())
