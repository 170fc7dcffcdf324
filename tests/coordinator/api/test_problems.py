"""Every error of ours has one HTTP status, and none was forgotten."""

from __future__ import annotations

from http import HTTPStatus

import pytest

from coordinator.api.problems import STATUS, status_of
from shared import errors


def family(root: type[errors.LlmOsError]) -> list[type[errors.LlmOsError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in family(child))]


@pytest.mark.parametrize("kind", family(errors.LlmOsError), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_of_an_error(kind: type[errors.LlmOsError]) -> None:
    assert status_of(kind) >= 400


@pytest.mark.parametrize("kind", STATUS, ids=lambda kind: kind.__name__)
def test_a_new_error_has_its_parents_status(kind: type[errors.LlmOsError]) -> None:
    child = type("Child", (kind,), {})
    assert status_of(child) == STATUS[kind]
    grandchild = type("Grandchild", (child,), {})
    assert status_of(grandchild) == STATUS[kind]


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (errors.AccessDenied, HTTPStatus.UNAUTHORIZED),
        (errors.RunNotFound, HTTPStatus.NOT_FOUND),
        (errors.RoundClosed, HTTPStatus.GONE),
        (errors.DuplicateUpdate, HTTPStatus.CONFLICT),
        (errors.CohortTooSmall, HTTPStatus.CONFLICT),
        (errors.BudgetExceeded, HTTPStatus.FORBIDDEN),
        (errors.WrongKey, HTTPStatus.UNPROCESSABLE_ENTITY),
        (errors.StorageError, HTTPStatus.INSUFFICIENT_STORAGE),
        (errors.ChildDied, HTTPStatus.SERVICE_UNAVAILABLE),
    ],
)
def test_the_status_says_what_happened(kind: type[errors.LlmOsError], status: HTTPStatus) -> None:
    assert status_of(kind) == status
