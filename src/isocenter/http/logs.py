"""Logging: plain lines or JSON, one configuration for Isocenter's and the server library's messages; no patient data."""

from __future__ import annotations

import logging
import sys

import structlog

from isocenter.core.settings import Settings


def configure(settings: Settings) -> None:
    """Send all log records to standard error in the form that the settings ask for."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    last: structlog.typing.Processor = structlog.processors.JSONRenderer() if settings.log_format == "json" else _plain
    formatter = structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last], foreign_pre_chain=shared
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
    for name in ("alembic", "highdicom", "pynetdicom"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))  # they tell of each step, and of what they were sent
    # Access lines hold query strings, which may name a patient's study.
    logging.getLogger("uvicorn.access").disabled = True
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        cache_logger_on_first_use=True,
    )


def _plain(logger: object, name: str, event: structlog.typing.EventDict) -> str:
    facts = {k: v for k, v in event.items() if k not in ("event", "level", "timestamp", "exception")}
    line = f"{event.get('timestamp', '')} {event.get('level', '').upper():<7} {event.get('event', '')}"
    line += "".join(f" {key}={value}" for key, value in facts.items())
    return line + (f"\n{event['exception']}" if "exception" in event else "")
