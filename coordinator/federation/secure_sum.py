"""Add encrypted updates without being able to read any of them.

One running total per round, folded in a worker process as updates arrive. The
updates' files are the truth: if the worker dies, or the coordinator restarts,
the total is folded again from them, in any order, with the same result.

    S1  the adding side holds no key that decrypts, and the total cannot be opened here
        (except under the clear scheme, which protects nothing and says so)
    S2  a refused update leaves the total as it was
    S3  memory is one total, however many devices report
"""

from __future__ import annotations

from pathlib import Path

from shared.crypto.sum_cipher import Adder, Scheme, SumContext, SumLayout
from shared.errors import ChildDied
from shared.files import digest_of
from shared.types import Digest


class SecureSum:
    """The running encrypted total of one round."""

    def __init__(
        self, adder: Adder, layout: SumLayout, scheme: Scheme, context: SumContext
    ) -> None:
        self._adder = adder
        self._layout = layout
        self._scheme = scheme
        self._context = context
        self._folded: dict[Path, None] = {}
        self._begun = False

    @property
    def devices(self) -> int:
        """How many updates are in the total."""
        return len(self._folded)

    def fold(self, frame: Path) -> None:
        """Add one device's stored update.

        Raises:
            ProtocolError: the frame is not one of this round (S2).
            ChildDied: the worker died on it twice; the total is unchanged, and
                the frame must not be counted.
        """
        try:
            self._rebuilt()
            self._adder.add(self._context, frame)
        except ChildDied:
            # The worker took the total with it: start again from the files, once.
            self._begun = False
            self._rebuilt()
            self._adder.add(self._context, frame)
        self._folded[frame] = None

    def total(self) -> tuple[bytes, Digest]:
        """The encrypted total and its digest, folded again if the worker was lost."""
        try:
            self._rebuilt()
            data = self._adder.dump(self._context)
        except ChildDied:
            self._begun = False
            self._rebuilt()
            data = self._adder.dump(self._context)
        return data, digest_of(data)

    def discard(self) -> None:
        """Free the worker's memory."""
        if self._begun:
            self._adder.discard(self._context)
            self._begun = False

    def _rebuilt(self) -> None:
        if self._begun:
            return
        self._adder.begin(self._layout, self._scheme, self._context)
        for frame in self._folded:
            self._adder.add(self._context, frame)
        self._begun = True
