"""``watch.toml``: which rules count, what they count to, and what follows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from coordinator.watch.rules import MOST_COUNT, RULES, Rule
from shared.config import Field, Table, read_toml

FILE: Final = "watch.toml"
"""In the coordinator's home."""


class RuleTable(Table):
    """What the operator changes in a rule; nothing said leaves it as it is.

    Attributes:
        on: Whether it counts.
        count: So many sightings about one subject are an alarm,
        window_s: if they come within so many seconds.
    """

    on: bool = True
    count: int | None = Field(None, ge=1, le=MOST_COUNT)
    window_s: float | None = Field(None, ge=1.0, le=7 * 86_400.0)


class Watching(Table):
    """The table ``[watch]``.

    Attributes:
        webhook: Where alarms are sent to: https, or http to this machine; empty: nowhere.
        quarantine_devices: Whether devices are put in quarantine by rules that may.
        quarantine_keys: Whether API keys are.
        rules: By code, what is changed.
    """

    webhook: str = Field("", max_length=2000)
    quarantine_devices: bool = False
    quarantine_keys: bool = False
    rules: dict[str, RuleTable] = Field(default_factory=dict)

    def contradictions(self) -> Iterator[str]:
        """Yield what does not hold."""
        if self.webhook and (problem := _unfit(self.webhook)):
            yield f"webhook: {problem}"
        for code in self.rules:
            if code not in RULES:
                yield f"rules.{code}: there is no such rule; there are {', '.join(RULES)}"

    def effective(self) -> Mapping[str, Rule]:
        """The rules that count, as they are to count."""
        found = {}
        for code, rule in RULES.items():
            table = self.rules.get(code, RuleTable())
            if table.on:
                found[code] = replace(
                    rule,
                    count=table.count or rule.count,
                    window_s=table.window_s or rule.window_s,
                )
        return found


class WatchFile(Table):
    """The whole file."""

    watch: Watching = Field(default_factory=Watching)


def read_watching(home: Path, named: Path | None) -> Watching:
    """The settings in the file that was named, or in the home if one lies there, or the defaults.

    Raises:
        ConfigError: naming every problem in the file.
    """
    path = named or home / FILE
    if named is None and not path.exists():
        return Watching()
    return read_toml(WatchFile, path).watch


def _unfit(url: str) -> str:
    """What is wrong with an address that alarms are to be sent to."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "is no address"
    if parts.username is not None or parts.fragment or not host or not url.isprintable():
        return "must be https://HOST/…, without user, password or fragment"
    if parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)):
        return ""
    return "must begin with https:// (http:// is only for this machine itself)"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
