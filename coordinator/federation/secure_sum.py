"""Add encrypted updates without being able to read any of them.

One running total per group of a round, folded in a worker process as updates
arrive. The updates' files are the truth: if the worker dies, or the coordinator
restarts, the totals are folded again from them, in any order, with the same result.

    S1  the adding side holds no key that decrypts, and no total can be opened here
        (except under the clear scheme, which protects nothing and says so)
    S2  a refused update leaves the totals as they were
    S3  memory is one total per group, however many devices report
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

from shared.crypto.sum_cipher import Adder, Scheme, SumContext, SumLayout
from shared.errors import ChildDied


class SecureSum:
    """The running encrypted totals of one round, by group."""

    def __init__(
        self, adder: Adder, layout: SumLayout, scheme: Scheme, context: SumContext
    ) -> None:
        self._adder = adder
        self._layout = layout
        self._scheme = scheme
        self._context = context
        self._folded: dict[int, list[Path]] = {}
        self._begun: set[int] = set()

    def fold(self, frame: Path, group: int = 0) -> None:
        """Add one device's stored update to its group's total.

        Raises:
            ProtocolError: the frame is not one of this round (S2).
            ChildDied: the worker died on it twice; the totals are unchanged, and
                the frame must not be counted.
        """
        try:
            self._add(frame, group)
        except ChildDied:
            # The worker took its totals with it: start again from the files, once.
            self._begun.clear()
            self._add(frame, group)
        self._folded.setdefault(group, []).append(frame)

    def total(self, group: int = 0) -> bytes:
        """A group's encrypted total, folded again if the worker was lost."""
        try:
            return self._dump(group)
        except ChildDied:
            self._begun.clear()
            return self._dump(group)

    def discard(self) -> None:
        """Free the worker's memory."""
        begun, self._begun = self._begun, set()
        with contextlib.suppress(ChildDied):  # then there is nothing left to discard
            for group in begun:
                self._adder.discard(self._of(group))

    def _of(self, group: int) -> SumContext:
        return replace(self._context, group=group)

    def _add(self, frame: Path, group: int) -> None:
        self._rebuilt(group)
        self._adder.add(self._of(group), frame)

    def _dump(self, group: int) -> bytes:
        self._rebuilt(group)
        return self._adder.dump(self._of(group))

    def _rebuilt(self, group: int) -> None:
        if group in self._begun:
            return
        self._adder.begin(self._layout, self._scheme, self._of(group))
        for frame in self._folded.get(group, ()):
            self._adder.add(self._of(group), frame)
        self._begun.add(group)
