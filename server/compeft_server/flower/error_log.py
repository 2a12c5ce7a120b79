"""Logs a ServerApp's expected failures as one line instead of a traceback.

Flower logs an exception of the app with `exc_info`, which prints every frame of Flower, Ray and gRPC. A CompeftError's message names the
thing, the reason and the way out, so the frames are logged at level DEBUG only (FLWR_LOG_LEVEL=DEBUG).
"""

import logging
import traceback

from flwr.common.logger import FLOWER_LOGGER

from compeft_core.errors import CompeftError


def log_errors_as_lines() -> None:
    """Make Flower's logger print a CompeftError as one line in this process. A second call changes nothing."""
    FLOWER_LOGGER.addFilter(_without_frames)


def _without_frames(record: logging.LogRecord) -> bool:
    """Replace the traceback of a record about a CompeftError by the error's message; True: the record is printed."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, CompeftError):
        FLOWER_LOGGER.debug("%s", "".join(traceback.format_exception(error)))
        record.msg, record.args, record.exc_info = "%s: %s", (record.getMessage(), error), None
    return True
