"""A stand-in is trained whole, repeatably, and is kept until it is asked for otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coordinator.registry.pairs import last_intents, shipped_pairs
from coordinator.registry.tiny import Recipe, make_once, make_tiny
from shared.errors import ConfigError

PAIRS = shipped_pairs()[::20]


def test_every_shipped_ticket_has_an_answer_and_six_intents_are_left_out() -> None:
    pairs = shipped_pairs()
    assert len(pairs) == 5040
    assert len({pair.answer for pair in pairs}) == 48
    assert len(last_intents(pairs)) == 6


def test_the_same_steps_give_the_same_model_and_training_helps(tmp_path: Path) -> None:
    left_out = last_intents(PAIRS)
    first = make_tiny(tmp_path / "a", PAIRS, Recipe("smaller", steps=3, leave_out=left_out))
    again = make_tiny(tmp_path / "b", PAIRS, Recipe("smaller", steps=3, leave_out=left_out))
    longer = make_tiny(tmp_path / "c", PAIRS, Recipe("smaller", steps=30, leave_out=left_out))
    assert first.base == again.base
    assert longer.perplexity_unseen < first.perplexity_unseen
    assert first.left_out == left_out
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["stand_in"] is True


def test_what_was_made_in_the_same_way_is_kept_and_nothing_else(tmp_path: Path) -> None:
    made = make_once(tmp_path / "m", PAIRS, Recipe("smaller", steps=2))
    assert not made.reused
    assert make_once(tmp_path / "m", PAIRS, Recipe("smaller", steps=2)).reused
    with pytest.raises(ConfigError, match="force"):
        make_once(tmp_path / "m", PAIRS, Recipe("smaller", steps=3))
    assert not make_once(tmp_path / "m", PAIRS, Recipe("smaller", steps=3), force=True).reused


def test_an_intent_that_is_not_there_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no-such"):
        make_tiny(tmp_path / "m", PAIRS, Recipe("smaller", steps=1, leave_out=("no-such",)))
    assert list(tmp_path.iterdir()) == []
