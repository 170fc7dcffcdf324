"""Builds the services about texts out of what ``llmos up`` was told, and takes them down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from coordinator.inference.encoder import Encoder
from coordinator.inference.graph_encoder import GraphEncoder
from coordinator.inference.run_heads import FindHead
from coordinator.inference.text_services import TextServices
from coordinator.inference.upstream_encoder import UpstreamEncoder
from coordinator.retrieval.library import Library
from coordinator.retrieval.vectors import VectorStore
from shared.errors import ConfigError
from shared.models.encoder import MINILM, is_on_this_machine

NO_ENCODER: Final = "none"
COLLECTIONS: Final = "collections"
"""Folder in the coordinator's home."""
MODELS: Final = "models"


class ServedModel(Encoder, Protocol):
    """A model of texts, which is started and closed."""

    def start(self) -> None:
        """Begin to load it, or to watch those who serve it, and return at once."""
        ...

    def close(self) -> None:
        """End it; whoever waits is told."""
        ...


@dataclass(frozen=True, slots=True)
class ServedTexts:
    """The services, and what has to be started and closed for them."""

    services: TextServices
    models: tuple[ServedModel, ...]
    at_once: tuple[ServedModel, ...]
    """Those that somebody asked for by name; the others wait until they are needed."""

    def start(self) -> None:
        """Begin to load what was asked for by name."""
        for model in self.at_once:
            model.start()

    def close(self) -> None:
        """End the models' processes and close the collections."""
        for model in self.models:
            model.close()
        if self.services.library is not None:
            self.services.library.close()


def serve_texts(
    home: Path,
    *,
    encoder: str,
    reader: str,
    vectors: str,
    find_head: FindHead,
    on_nodes: tuple[UpstreamEncoder | None, UpstreamEncoder | None] = (None, None),
) -> ServedTexts:
    """Describe the models; nothing is loaded yet.

    Args:
        home: Imported models and collections live in it.
        encoder: A folder or hub id; empty for MiniLM if it is on this machine; ``none``.
        reader: A folder or hub id; empty for none.
        vectors: URL of a PostgreSQL; empty for files in the home.
        find_head: What finished runs have learnt.
        on_nodes: On other machines in place of these: one that embeds, and one that reads.

    Raises:
        ConfigError: the URL is no PostgreSQL's, or a model is named here and on other machines.
        ModelError: a model is neither a folder with one nor written like a hub id.
    """
    if vectors and not vectors.startswith(("postgresql://", "postgres://")):
        # The URL may hold a password, so it is not repeated.
        raise ConfigError(["--vectors: expected postgresql://…"], source="options")
    embeds, reads = _checked(on_nodes, encoder=encoder, reader=reader)
    asked = encoder or embeds is not None
    if not encoder:
        encoder = MINILM if is_on_this_machine(MINILM) else NO_ENCODER
    models = home / MODELS
    if embeds is None and encoder != NO_ENCODER:
        embeds = GraphEncoder(encoder, models)
    if reads is None and reader:
        reads = GraphEncoder(reader, models, reads=True)

    def open_store() -> VectorStore:
        if vectors:
            from coordinator.retrieval.postgres_vectors import PostgresVectors

            return PostgresVectors(vectors)
        from coordinator.retrieval.lance_vectors import LanceVectors

        return LanceVectors(home / COLLECTIONS)

    services = TextServices(
        encoder=embeds,
        reader=reads,
        library=Library(embeds, open_store) if embeds is not None else None,
        find_head=find_head,
    )
    both = tuple(model for model in (embeds, reads) if model is not None)
    return ServedTexts(services, both, tuple(m for m in both if m is reads or asked))


def _checked(
    on_nodes: tuple[UpstreamEncoder | None, UpstreamEncoder | None], *, encoder: str, reader: str
) -> tuple[ServedModel | None, ServedModel | None]:
    embeds, reads = on_nodes
    problems = [
        f"--{name} and --upstream-{name}: one of them answers, name that"
        for name, here, there in (("encoder", encoder, embeds), ("reader", reader, reads))
        if here and there is not None
    ]
    if problems:
        raise ConfigError(problems, source="options")
    return embeds, reads
