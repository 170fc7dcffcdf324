"""The access list of a broker: a star around the coordinator, as topics are.

A1  a peer publishes on its own branch upwards, listens to its own downwards and to the call, and
    reads and writes nothing else
A2  a peer that was revoked does not even that
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shared.errors import DataError
from shared.wire import topics

_OWN_BRANCH: Final = f"""\
pattern write {topics.up("%u")}
pattern read {topics.down("%u")}
pattern read {topics.CALL}
"""

_OF_THE_COORDINATOR: Final = f"""\
user {topics.COORDINATOR}
topic read {topics.ALL_UP}
topic write {topics.down("+")}
topic write {topics.CALL}
"""


def access_list(revoked: Iterable[str]) -> str:
    """In the form of Mosquitto's ``acl_file``; a certificate's name is the user name.

    Raises:
        DataError: a name is none that a peer can have, and would be read as something else.
    """
    parts = ["# Written anew whenever it changes; changes here are lost.\n", _OF_THE_COORDINATOR]
    for name in sorted(revoked):
        if not topics.is_name(name):
            raise DataError(f"{name!r} is no peer's name")
        # A denial among a user's own lines is looked at before patterns are (mosquitto.conf(5)).
        parts.append(f"user {name}\ntopic deny {topics.ALL}\n")
    return "\n".join([*parts, _OWN_BRANCH])
