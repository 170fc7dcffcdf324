"""Any transition there could be, and whole stores of them with the files that they name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

from hypothesis import strategies as st

from coordinator.federation import rounds
from coordinator.federation.rounds import Transition
from coordinator.store.people import Link, Person, Session
from coordinator.store.store import ApiKey, Store
from shared.crypto.identity import Identity
from shared.files import digest_of
from shared.types import DeviceId, Digest, PublicKey, RoundNumber, RunId
from shared.wire.envelope import seal
from shared.wire.messages import KeyAnnouncement

TEXT = st.text(max_size=20)
VALUES: dict[object, st.SearchStrategy[Any]] = {
    str: TEXT,
    Digest: TEXT,
    bytes: st.binary(max_size=40),
    float: st.floats(allow_nan=False),
    int: st.integers(0, 2**62),
    bool: st.booleans(),
    tuple[str, ...]: st.lists(TEXT, max_size=4).map(tuple),
    tuple[int, ...]: st.lists(st.integers(0, 2**31), max_size=4).map(tuple),
    dict[str, float]: st.dictionaries(TEXT, st.floats(allow_nan=False), max_size=3),
}


def any_transition(kind: type) -> st.SearchStrategy[Transition]:
    """A strategy for one class of transitions; KeyError if it has a field of a new type."""
    hints = get_type_hints(kind)
    fields = {field.name: VALUES[hints[field.name]] for field in dataclasses.fields(kind)}
    return st.builds(kind, **fields)


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
TEXT_IN_ROWS = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20
)
TIMES = st.floats(0, 1e10)
BLOBS = st.binary(max_size=200)


@st.composite
def fillings(draw: st.DrawFn) -> Callable[[Store, Identity], None]:
    """Something that fills a store, alike every time."""
    names = draw(st.lists(NAMES, max_size=4, unique=True))
    joined = draw(st.lists(TIMES, min_size=len(names), max_size=len(names)))
    expires = draw(st.lists(TIMES, max_size=3))
    api_keys = draw(
        st.lists(
            st.builds(
                ApiKey,
                NAMES,
                st.text("abc", max_size=32),
                st.text("0123456789abcdef", min_size=64, max_size=64),
                TIMES,
                st.none() | TIMES,
                st.none() | TIMES,
                st.integers(-10, 10),
                st.integers(0, 2**62),
                st.booleans(),
            ),
            max_size=3,
            unique_by=(lambda key: key.name, lambda key: key.secret_sha256),
        )
    )
    people = draw(
        st.lists(
            st.builds(
                Person,
                NAMES,
                st.text("abc", max_size=32),
                st.sampled_from(["invited", "active", "disabled"]),
                st.none() | TEXT_IN_ROWS,
                TIMES,
                st.none() | TIMES,
            ),
            max_size=3,
            unique_by=lambda person: person.name,
        )
    )
    runs = draw(
        st.lists(
            st.tuples(NAMES, TEXT_IN_ROWS, BLOBS, TIMES), max_size=2, unique_by=lambda run: run[0]
        )
    )
    kinds = get_args(Transition)
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(0, 9),
                st.integers(1, 3),
                st.sampled_from(kinds).flatmap(any_transition),
                BLOBS,
                NAMES,
                TIMES,
            ),
            max_size=12,
        )
    )
    milestones = draw(
        st.lists(
            st.tuples(st.integers(0, 9), st.sampled_from(["started", "finished"]), BLOBS, TIMES),
            max_size=4,
        )
    )

    def fill(store: Store, identity: Identity) -> None:
        for number, (name, at) in enumerate(zip(names, joined, strict=True)):
            token = store.new_token(expires_at=at)
            store.join(token, DeviceId(name), PublicKey(number.to_bytes(32)), now=at)
        for at in expires:
            store.new_token(expires_at=at)
        for key in api_keys:
            store.add_key(key)
        for person in people:
            store.people.add(person)
            link = Link(f"l {person.name}", "reset", person.name, expires_at=1e11)
            store.people.add_link(link, now=0.0)
            if person.state == "active":
                session = Session(f"s {person.name}", person.name, begun_at=1.0, used_at=1.0)
                store.people.begin(
                    session, password=person.password, begun_after=0.0, used_after=0.0
                )
        for name, plan, probe, at in runs:
            store.add_run(RunId(name), plan, store.keep(probe), now=at)
        if not runs:
            return
        for which, kind, blob, at in milestones:
            facts = {"adapter": store.keep(blob), "loss": at}
            store.add_milestone(RunId(runs[which % len(runs)][0]), kind, facts, now=at)
        for which, number, transition, blob, device, at in steps:
            run = RunId(runs[which % len(runs)][0])
            kept = with_files(store, identity, run, RoundNumber(number), transition, blob, device)
            store.commit(run, RoundNumber(number), kept, now=at)

    return fill


def with_files(
    store: Store,
    identity: Identity,
    run: RunId,
    number: RoundNumber,
    transition: Transition,
    blob: bytes,
    device: str,
) -> Transition:
    """The same transition, but with files for what it names."""
    digest = digest_of(blob)
    match transition:
        case rounds.Planned():
            return rounds.Planned(store.keep(blob))
        case rounds.AdapterApplied():
            return dataclasses.replace(
                transition, adapter=store.keep(blob), moments=store.keep(blob + b"m")
            )
        case rounds.SumOpened():
            return dataclasses.replace(transition, digest=store.keep(blob))
        case rounds.KeyAnnounced(announcement=announcement):
            return rounds.KeyAnnounced(
                announced(identity, run, number, store.keep(blob)) if announcement else b""
            )
        case rounds.UpdateStored():
            path = store.update_file(run, number, DeviceId(device), digest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(blob)
            return rounds.UpdateStored(device, digest)
        case _:
            return transition


def announced(identity: Identity, run: RunId, number: RoundNumber, digest: Digest) -> bytes:
    """A key holder's signed announcement of a public key."""
    message = KeyAnnouncement("bfv", 1, 1, 1, 1, 1, "", "", digest, 1)
    return seal(identity, 1, message, run=run, round_=number)
