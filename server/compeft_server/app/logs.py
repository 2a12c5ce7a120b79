"""How log lines look: for people on a console, or JSON for a collector. They go to standard error; standard output is for results."""

import logging
import sys
from typing import Any, Literal

import structlog

LogFormat = Literal["console", "json"]


class _StandardError(logging.Handler):
    """Writes to what standard error is now: it may have been replaced since the logs were configured."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        print(self.format(record), file=sys.stderr)


def configure_logs(format: LogFormat) -> None:  # the option's name
    """Set the format of all log lines of this process, gRPC's and uvicorn's warnings among them."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(sort_keys=True)]
    if format == "console":
        last = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    structlog.configure(processors=[*shared, *last], logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
    handler = _StandardError()
    remove = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove, *last]))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
