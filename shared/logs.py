"""Logs are events with fields; one place decides how they look."""

from __future__ import annotations

import logging
import sys

import structlog


def set_up_logs(*, verbose: bool = False, as_json: bool = False) -> None:
    """Send events to standard error: readable for a person, JSON for a machine.

    Called by command lines only, never by a library.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    level = logging.DEBUG if verbose else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Asked at every event: whoever replaced standard error meanwhile gets it.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def silence_logs() -> None:
    """Errors only; for commands that draw their own progress."""
    set_up_logs()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
