"""Every exception the system raises on purpose, and what each one means.

    LlmOsError
    ├── ConfigError              a setting is missing, malformed or contradicts another
    ├── DependencyMissing        an optional extra is not installed
    ├── DataError                a data file or example store cannot be used as it is
    ├── ModelError               a base model is unknown, absent or not the one that was pinned
    ├── StorageError             the disk refused: full, read-only or damaged
    │   └── AuditDamaged           the audit log was altered, cut, or broke other than at its torn end
    ├── BrokerUnavailable        no MQTT broker answers where one was expected
    ├── CoordinatorUnavailable   no coordinator answers where one was expected
    ├── ProviderUnavailable      no provider of identities answers as one does
    ├── ChildDied                a worker process ended before it answered
    ├── AccessDenied             the caller showed no valid credential
    │   ├── NotPermitted           the credential is valid, and does not reach that far
    │   └── TooManyTries           too many logins of this name or from this address have failed
    ├── ProtocolError            a peer sent what the wire format does not allow
    │   ├── UndecodableMessage     the bytes are not a message
    │   │   └── MalformedMessage     the signature fits, and the signed body is not what its kind has
    │   ├── BadSignature           the signature does not belong to these bytes and this sender
    │   ├── ReplayedMessage        the sequence number is not newer than the last one
    │   ├── DigestMismatch         a blob is not the one that was announced
    │   ├── WrongKey               a ciphertext belongs to another key, round or parameter set
    │   └── ShapeMismatch          a vector differs from the shape the round agreed on
    ├── PrivacyError             going on would break a promise made to a device
    │   ├── NonFiniteUpdate        NaN or infinity: the norm, so the clip, means nothing
    │   ├── CohortTooSmall         too few devices to hide one of them in the total
    │   ├── NotApproved            a contribution comes from a device nobody approved
    │   ├── AlreadyOpened          this round's one opening has been spent
    │   ├── SumOutOfRange          an opened total holds a value no honest cohort can reach
    │   ├── OwnerRefuses           the device's owner does not allow such a run
    │   ├── ConditionsNotMet       the device is on battery, busy, hot or the like, and declines for now
    │   ├── BudgetExceeded         the job's worst case would overrun the owner's budget
    │   ├── AlreadyReleased        this round's one release is out: a second would be a second view
    │   ├── LedgerDamaged          the ledger was edited or broke other than at its torn end
    │   └── SeedRefused            repeatable noise was asked for outside a simulation
    ├── EngineError              the coordinator's language model cannot answer
    │   ├── EngineBusy             it is still being loaded, or too many requests wait
    │   ├── QuotaExceeded          the caller has used up its tokens for now
    │   └── PromptRefused          it has no room or no form for such a prompt
    ├── CollectionNotFound       the caller has no collection of passages with this name
    ├── GateRefused              an adapter failed its checks and is neither sent nor applied
    └── RoundError               a run or round cannot do what was asked
        ├── RunNotFound
        ├── RoundNotFound
        ├── RoundClosed
        ├── DuplicateUpdate
        └── IllegalTransition

A class is added when some caller *handles* it differently from its parent;
otherwise raise the parent with a better message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar


class LlmOsError(Exception):
    """Base of the hierarchy: ``except LlmOsError`` never hides a bug of ours."""

    code: ClassVar[str] = "internal"
    """Stable and public: it appears in HTTP bodies, MQTT replies, logs and the docs."""

    retryable: ClassVar[bool] = False
    """Whether the *same* request may succeed later without anyone changing it."""

    retry_after_s: float | None = None
    """In how many seconds it is worth another try, where somebody can tell."""


class ConfigError(LlmOsError):
    """A setting is missing, malformed or contradicts another."""

    code = "config"

    def __init__(self, problems: Sequence[str], *, source: str = "configuration") -> None:
        super().__init__(f"invalid {source}:\n" + "\n".join(f"  - {p}" for p in problems))
        self.problems = list(problems)


class DependencyMissing(LlmOsError):
    """An optional extra is not installed."""

    code = "dependency_missing"

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is needed here: pip install '.[{extra}]'")
        self.module = module
        self.extra = extra


class DataError(LlmOsError):
    """A data file or example store cannot be used as it is."""

    code = "data"


class ModelError(LlmOsError):
    """A base model is unknown, absent or not the one that was pinned."""

    code = "model"


class StorageError(LlmOsError):
    """The disk refused: full, read-only or damaged."""

    code = "storage"
    retryable = True


class AuditDamaged(StorageError):
    """The audit log was altered, cut, or broke other than at its torn last record."""

    code = "storage.audit"
    retryable = False

    def __init__(self, why: str, *, record: int) -> None:
        place = f"record {record} of the audit log" if record else "the audit log"
        super().__init__(f"{place}: {why}")
        self.why = why
        self.record = record


class BrokerUnavailable(LlmOsError):
    """No MQTT broker answers where one was expected."""

    code = "broker_unavailable"
    retryable = True


class CoordinatorUnavailable(LlmOsError):
    """No coordinator answers where one was expected."""

    code = "coordinator_unavailable"
    retryable = True


class ProviderUnavailable(LlmOsError):
    """No provider of identities answers, or not as one does."""

    code = "provider_unavailable"
    retryable = True


class ChildDied(LlmOsError):
    """A worker process ended before it answered."""

    code = "child_died"
    retryable = True


class AccessDenied(LlmOsError):
    """The caller showed no valid credential."""

    code = "access_denied"


class NotPermitted(AccessDenied):
    """The credential is valid, and does not reach that far."""

    code = "access_denied.not_permitted"


class TooManyTries(AccessDenied):
    """Too many logins of this name or from this address have failed, or wait."""

    code = "access_denied.too_many_tries"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProtocolError(LlmOsError):
    """A peer sent what the wire format does not allow."""

    code = "protocol"


class UndecodableMessage(ProtocolError):
    """The bytes are not a message."""

    code = "protocol.undecodable"


class MalformedMessage(UndecodableMessage):
    """The signature fits, and the signed body is not what its kind has."""

    code = "protocol.malformed"


class BadSignature(ProtocolError):
    """The signature does not belong to these bytes and this sender."""

    code = "protocol.signature"


class ReplayedMessage(ProtocolError):
    """The sequence number is not newer than the last one seen from this sender."""

    code = "protocol.replay"


class DigestMismatch(ProtocolError):
    """A blob is not the one that was announced."""

    code = "protocol.digest"


class WrongKey(ProtocolError):
    """A ciphertext belongs to another key, run, round or parameter set."""

    code = "protocol.wrong_key"


class ShapeMismatch(ProtocolError):
    """A vector differs from the shape the round agreed on."""

    code = "protocol.shape"


class PrivacyError(LlmOsError):
    """Going on would break a promise made to a device."""

    code = "privacy"


class NonFiniteUpdate(PrivacyError):
    """An update holds NaN or infinity, so its norm cannot bound anything."""

    code = "privacy.non_finite"


class CohortTooSmall(PrivacyError):
    """Too few devices to hide one of them in the total."""

    code = "privacy.cohort"
    retryable = True

    def __init__(
        self, *, present: int, required: int, unable: Mapping[str, int] | None = None
    ) -> None:
        """``unable``: how many more there are, by the condition for which they take no part."""
        kept = ", ".join(f"{count} {name}" for name, count in sorted((unable or {}).items()))
        others = f"; others are here and take no part now: {kept}" if kept else ""
        super().__init__(f"{present} of the required {required} devices have reported{others}")
        self.present = present
        self.required = required


class NotApproved(PrivacyError):
    """A contribution comes from a device that the key holder's operator did not approve."""

    code = "privacy.not_approved"


class AlreadyOpened(PrivacyError):
    """This round's one opening has been spent on another set of contributions."""

    code = "privacy.already_opened"


class SumOutOfRange(PrivacyError):
    """An opened total holds a value no honest cohort can reach."""

    code = "privacy.sum_range"


class OwnerRefuses(PrivacyError):
    """The device's owner does not allow such a run."""

    code = "privacy.owner"


class ConditionsNotMet(PrivacyError):
    """The device declines for now: a condition of its owner's does not hold."""

    code = "privacy.conditions"

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(f"a condition of the owner's does not hold: {', '.join(names)}")


class BudgetExceeded(PrivacyError):
    """The job's worst case would overrun the owner's budget."""

    code = "privacy.budget"

    def __init__(self, *, needed: float, budget: float) -> None:
        super().__init__(
            f"the job could bring this device to ε = {needed:.2f}, its owner allows {budget:.2f}"
        )
        self.needed = needed
        self.budget = budget


class AlreadyReleased(PrivacyError):
    """This round's one release has left the device, and its noise is forgotten."""

    code = "privacy.released"


class LedgerDamaged(PrivacyError):
    """The ledger was edited, or broke other than at its torn last record."""

    code = "privacy.ledger"


class SeedRefused(PrivacyError):
    """Repeatable noise was asked for outside a simulation."""

    code = "privacy.seed"


class CollectionNotFound(LlmOsError):
    """The caller has no collection of passages with this name."""

    code = "collection_not_found"


class GateRefused(LlmOsError):
    """An adapter failed its checks and is neither sent nor applied."""

    code = "gate"


class EngineError(LlmOsError):
    """The coordinator's language model cannot answer."""

    code = "engine"


class EngineBusy(EngineError):
    """The model is still being loaded, or as many requests wait as may."""

    code = "engine.busy"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QuotaExceeded(EngineError):
    """The caller has used up its tokens for now."""

    code = "engine.quota"
    retryable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PromptRefused(EngineError):
    """The prompt leaves no room in the model's context, or its chat template refuses it."""

    code = "engine.prompt"


class RoundError(LlmOsError):
    """A run or round cannot do what was asked."""

    code = "round"


class RunNotFound(RoundError):
    """No run has this identifier."""

    code = "round.run_not_found"


class RoundNotFound(RoundError):
    """No round has this number."""

    code = "round.not_found"


class RoundClosed(RoundError):
    """The set of contributions is fixed; nothing more is accepted."""

    code = "round.closed"


class DuplicateUpdate(RoundError):
    """Another update of this device is already counted in the round."""

    code = "round.duplicate"


class IllegalTransition(RoundError):
    """The round is in a state from which this step does not exist."""

    code = "round.transition"
