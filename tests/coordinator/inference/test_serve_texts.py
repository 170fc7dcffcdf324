"""What ``llmos up`` makes of its options about texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import coordinator.inference.serve_texts as module
from coordinator.inference.serve_texts import NO_ENCODER, serve_texts
from shared.errors import ConfigError, ModelError
from shared.models.encoder import MINILM

NOBODY: Any = None


def test_without_options_minilm_waits_until_it_is_needed_if_it_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "is_on_this_machine", lambda name: name == MINILM)
    served = serve_texts(tmp_path, encoder="", reader="", vectors="", find_head=NOBODY)
    assert [model.card.name for model in served.models] == [MINILM]
    assert served.at_once == ()
    assert served.services.an_encoder() is served.models[0]
    served.close()
    monkeypatch.setattr(module, "is_on_this_machine", lambda _: False)
    served = serve_texts(tmp_path, encoder="", reader="", vectors="", find_head=NOBODY)
    assert served.models == ()
    for ask in (served.services.an_encoder, served.services.a_library):
        with pytest.raises(ModelError, match="--encoder"):
            ask()
    with pytest.raises(ModelError, match="--reader"):
        served.services.a_reader()


def test_what_is_named_is_loaded_at_once(tmp_path: Path) -> None:
    served = serve_texts(
        tmp_path, encoder="owner/encoder", reader="owner/reader", vectors="", find_head=NOBODY
    )
    assert [model.card.name for model in served.at_once] == ["owner/encoder", "owner/reader"]
    assert [model.card.reads_answers for model in served.models] == [False, True]
    served.close()


def test_another_url_than_postgresqls_is_refused_without_repeating_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--vectors: expected postgresql://") as refused:
        serve_texts(
            tmp_path, encoder=NO_ENCODER, reader="", vectors="mysql://u:hidden@h", find_head=NOBODY
        )
    assert "hidden" not in str(refused.value)
