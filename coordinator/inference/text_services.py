"""What the coordinator can do with texts besides conversations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from coordinator.inference.encoder import Encoder
from coordinator.inference.run_heads import FindHead
from shared.errors import ModelError

if TYPE_CHECKING:
    from coordinator.retrieval.library import Library


@dataclass(frozen=True, slots=True)
class TextServices:
    """What routes about texts may call; each part may be absent.

    Attributes:
        encoder: Embeds and classifies.
        reader: Finds answers in passages.
        library: Collections of passages.
        find_head: What finished runs have learnt to tell apart.
    """

    encoder: Encoder | None = None
    reader: Encoder | None = None
    library: Library | None = None
    find_head: FindHead | None = None

    @property
    def served(self) -> list[Encoder]:
        """Those that there are."""
        return [model for model in (self.encoder, self.reader) if model is not None]

    def an_encoder(self) -> Encoder:
        """The encoder.

        Raises:
            ModelError: there is none.
        """
        if self.encoder is None:
            raise ModelError(
                "this coordinator has no encoder: start it with 'llmos up --encoder …'"
            )
        return self.encoder

    def a_reader(self) -> Encoder:
        """The reader.

        Raises:
            ModelError: there is none.
        """
        if self.reader is None:
            raise ModelError("this coordinator has no reader: start it with 'llmos up --reader …'")
        return self.reader

    def a_library(self) -> Library:
        """The collections of passages.

        Raises:
            ModelError: there are none, because there is no encoder.
        """
        if self.library is None:
            raise ModelError(
                "this coordinator keeps no collections: start it with 'llmos up --encoder …'"
            )
        return self.library
