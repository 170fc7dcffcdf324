"""Who publishes where: a star around the coordinator.

Every peer publishes on its own branch ``llmos/v1/up/<peer>`` and listens on
``llmos/v1/down/<peer>`` and on the call to everyone, so a broker's access list
can hold each device to its own branch by its user name.
"""

from __future__ import annotations

import re
from typing import Final

KEY_HOLDER: Final = "key-holder"
"""The key holder's name among the coordinator's peers."""

COORDINATOR: Final = "coordinator"
"""The coordinator's own name at a broker that asks for names; no peer has it."""

RESERVED: Final = frozenset({KEY_HOLDER, COORDINATOR})
"""Names that no device may have."""

ALL: Final = "llmos/#"
"""Every topic of ours."""

CALL: Final = "llmos/v1/call"
"""The coordinator asks everyone to show that they are present."""

ALL_UP: Final = "llmos/v1/up/+"
"""What the coordinator listens to."""

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,46}[a-z0-9])?")


def is_name(text: str) -> bool:
    """Whether ``text`` may name a peer: 1 to 48 of a-z, 0-9 and inner hyphens.

    >>> is_name("kitchen-cam"), is_name("a/+"), is_name("")
    (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def up(peer: str) -> str:
    """Where ``peer`` publishes for the coordinator."""
    return f"llmos/v1/up/{peer}"


def down(peer: str) -> str:
    """Where the coordinator publishes for ``peer``."""
    return f"llmos/v1/down/{peer}"


def peer_of(topic: str) -> str | None:
    """The peer whose upward branch ``topic`` is, if it is one.

    >>> peer_of(up("kitchen-cam"))
    'kitchen-cam'
    """
    head, _, name = topic.rpartition("/")
    return name if head == "llmos/v1/up" and is_name(name) else None
