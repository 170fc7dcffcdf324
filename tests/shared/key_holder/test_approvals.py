"""The operator's list names each device once, and is believed only while it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DataError, StorageError
from shared.key_holder.approvals import Approvals
from shared.types import PublicKey

A, B = PublicKey(b"a" * 32), PublicKey(b"b" * 32)


@pytest.fixture
def approvals(tmp_path: Path) -> Approvals:
    return Approvals(tmp_path / "approvals.json")


def test_at_first_nobody_is_approved(approvals: Approvals) -> None:
    assert approvals.read() == {}


def test_what_is_approved_is_there_for_the_next_process_until_it_is_withdrawn(
    approvals: Approvals, tmp_path: Path
) -> None:
    approvals.approve("kitchen", A)
    approvals.approve("attic", B)
    approvals.approve("attic", B)  # said twice
    other = Approvals(tmp_path / "approvals.json")
    assert other.read() == {A: "kitchen", B: "attic"}
    approvals.withdraw("kitchen")
    assert other.read() == {B: "attic"}
    assert (tmp_path / "approvals.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("name", "key"), [("kitchen", B), ("attic", A)])
def test_a_name_and_a_key_belong_together_for_good(
    approvals: Approvals, name: str, key: PublicKey
) -> None:
    """Else one device under two names would count as two."""
    approvals.approve("kitchen", A)
    with pytest.raises(DataError, match="approved already"):
        approvals.approve(name, key)
    assert approvals.read() == {A: "kitchen"}


@pytest.mark.parametrize("name", ["", "a/b", "A", "-a", "a-", "x" * 49, "ä", "a\n"])
def test_what_is_no_name_is_refused(approvals: Approvals, name: str) -> None:
    with pytest.raises(DataError, match="not a device name"):
        approvals.approve(name, A)
    assert approvals.read() == {}


def test_withdrawing_a_stranger_is_an_error(approvals: Approvals) -> None:
    with pytest.raises(DataError, match="no device named"):
        approvals.withdraw("kitchen")


@given(
    st.one_of(
        st.binary(max_size=30).filter(lambda data: b"{" not in data),
        st.sampled_from(
            [b"[]", b"5", b"null", b'{"a": 5}', b'{"a": null}', b'{"a": "zz"}', b'{"a": [1]}', b""]
        ),
    )
)
def test_a_damaged_list_approves_nobody(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "approvals.json"
    path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged"):
        Approvals(path).read()


def test_a_list_that_cannot_be_read_approves_nobody(tmp_path: Path) -> None:
    (tmp_path / "approvals.json").mkdir()
    with pytest.raises(StorageError, match="cannot read"):
        Approvals(tmp_path / "approvals.json").read()
