"""Logs are events with fields; one place decides how they look.

L1  an event is one line of standard error, or readable lines for a person
L2  a line for systemd's journal begins with its level as ``<N>`` and has no time of its own:
    the journal keeps both, and filters by them
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Final

import structlog

_SYSLOG_LEVELS: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}


def set_up_logs(*, verbose: bool = False, as_json: bool = False) -> None:
    """Send events to standard error: readable for a person, JSON for a machine.

    Called by command lines only, never by a library.
    """
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    last: list[structlog.typing.Processor] = [structlog.processors.format_exc_info, renderer]
    if as_json and _is_journal():
        last[-1] = _with_level(renderer)
    else:
        last.insert(0, structlog.processors.TimeStamper(fmt="iso", utc=True))
    level = logging.DEBUG if verbose else logging.INFO
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        # Asked at every event: whoever replaced standard error meanwhile gets it.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _is_journal() -> bool:
    """Whether standard error is the stream that systemd connected to its journal."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        here = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or not a file at all
        return False
    return (device, inode) == (str(here.st_dev), str(here.st_ino))


def _with_level(render: structlog.typing.Processor) -> structlog.typing.Processor:
    def processor(
        logger: structlog.typing.WrappedLogger, name: str, event: structlog.typing.EventDict
    ) -> str:
        level = _SYSLOG_LEVELS.get(event["level"], _SYSLOG_LEVELS["info"])
        return f"<{level}>{render(logger, name, event)!s}"

    return processor


def silence_logs() -> None:
    """Errors only; for commands that draw their own progress."""
    set_up_logs()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
