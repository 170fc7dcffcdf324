"""Audit logs for tests, and the program in docs/audit.md that checks them without our code."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType
from unittest.mock import patch

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import strategies as st

from coordinator.audit.chain import Action, Checkpoint, Entry, Record, chained
from coordinator.audit.verify import LOG, NEWEST
from shared.crypto.identity import Identity

DOCS = Path(__file__).parents[2] / "docs" / "audit.md"
AT = 1_700_000_000
IDENTITY = Identity(Ed25519PrivateKey.from_private_bytes(b"c" * 32))
STRANGER = Identity(Ed25519PrivateKey.from_private_bytes(b"s" * 32))

_words = st.text(
    st.characters(categories=["L", "N", "P", "S"], include_characters=" "), max_size=12
).filter(lambda text: not text or text.isprintable())
ENTRIES = st.builds(
    Entry,
    st.sampled_from([one for one in Action if one is not Action.CHECKPOINT]),
    _words.filter(bool),
    _words,
    st.dictionaries(
        st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True),
        st.one_of(_words, st.booleans(), st.integers(-(2**53) + 1, 2**53 - 1)),
        max_size=4,
    ),
)


def entry(number: int, action: Action = Action.ROUND_APPLIED) -> Entry:
    return Entry(action, "coordinator", f"run/{number}", {"adapter": "a" * 64, "accepted": True})


def chain(
    entries: Sequence[Entry], *, every: int, signed_by: Identity = IDENTITY
) -> tuple[list[Record], Checkpoint]:
    """Records with a checkpoint after each ``every`` of them and at the end, and the last one."""
    records: list[Record] = []
    newest = None
    for position, one in enumerate(entries, start=1):
        last = chained(records[-1] if records else None, one, AT + position)
        records.append(last)
        if position % every == 0 or position == len(entries):
            newest = Checkpoint.sign(signed_by, last, AT + position)
            records.append(chained(last, newest.entry(), newest.at))
    assert newest is not None
    return records, newest


def write(folder: Path, lines: Sequence[bytes], newest: Checkpoint | None) -> Path:
    """A log and the checkpoint beside it, as they would lie in a coordinator's home."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOG
    path.write_bytes(b"".join(lines))
    (folder / NEWEST).unlink(missing_ok=True)
    if newest is not None:
        (folder / NEWEST).write_text(newest.to_line() + "\n")
    return path


def _program() -> CodeType:
    found = re.search(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return compile(found[1], str(DOCS), "exec")


PROGRAM = _program()


def what_the_program_says(path: Path) -> str:
    """What the program in the docs finds wrong with the chain; empty if nothing."""
    with path.open(encoding="utf-8") as file, patch.object(sys, "stdin", file):
        try:
            exec(PROGRAM, {})  # noqa: S102  it is the documented program itself
        except SystemExit as ended:
            return str(ended.code)
        except (ValueError, KeyError, TypeError) as err:
            return f"cannot be read: {err}"
    return ""
