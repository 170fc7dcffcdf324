"""Joining, certificates, and by what this coordinator's servers are known."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi import APIRouter, HTTPException
from pydantic import BaseModel, ConfigDict, Field

from shared.crypto.certificates import read_request
from shared.crypto.identity import format_public, parse_public
from shared.errors import DataError
from shared.types import DeviceId, PublicKey
from shared.wire import topics

if TYPE_CHECKING:
    from coordinator.api.app import Services
    from coordinator.authority.enrolment import Enrolment


REQUEST_BYTES: Final = 1024
"""One over an Ed25519 key has 400."""


class Join(BaseModel):
    """A device that joins, with the public half of a key it made itself."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(max_length=200)
    name: str = Field(max_length=64)
    public_key: str = Field(max_length=200)
    request: str = Field(
        default="",
        max_length=REQUEST_BYTES,
        description="For a certificate over this key (PKCS #10, PEM); empty without TLS",
    )


class Welcome(BaseModel):
    """Whom to trust and where to connect."""

    coordinator: str = Field(description="The coordinator's public key")
    key_holder: str = Field(description="The key holder's; empty: there is none")
    broker_host: str
    broker_port: int
    certificate: str = Field(description="For the broker, PEM; empty without TLS")


class Trust(BaseModel):
    """By what the servers are known."""

    coordinator: str = Field(description="The coordinator's public key")
    authorities: str = Field(description="Certificates, PEM")
    signature: str = Field(
        description="Of the coordinator over 'llmos trust 1', a null byte and the certificates; base64"
    )


class CertificateRequest(BaseModel):
    """Who wants a certificate."""

    model_config = ConfigDict(extra="forbid")

    request: str = Field(max_length=REQUEST_BYTES, description="PKCS #10, PEM, signed with its key")


class Certificate(BaseModel):
    """A certificate, and where the broker is that takes it."""

    certificate: str = Field(description="PEM")
    broker_host: str
    broker_port: int


def enrolment_routes(services: Services) -> APIRouter:
    """``/devices/join``, ``/certificates`` and ``/trust``."""
    router = APIRouter(tags=["devices"])
    enrolment = services.enrolment
    host, port = services.broker

    @router.post("/devices/join")
    def join(body: Join) -> Welcome:
        """Spend a one-time token; the answer says whom to trust and where to connect."""
        if not topics.is_name(body.name) or body.name in topics.RESERVED:
            raise DataError(f"{body.name!r} is not a device name: 1 to 48 of a-z, 0-9 and hyphens")
        key = parse_public(body.public_key)
        if enrolment is not None:
            _check_request(body, key)
        services.store.join(body.token, DeviceId(body.name), key, now=services.now())
        holder = services.key_holder
        return Welcome(
            coordinator=format_public(services.coordinator),
            key_holder=format_public(holder) if holder is not None else "",
            broker_host=host,
            broker_port=port,
            certificate=enrolment.certify(body.request) if enrolment is not None else "",
        )

    @router.get("/trust", summary="By what the servers are known")
    def trust() -> Trust:
        """Signed with the key that devices pinned, so it may be asked for before TLS is trusted."""
        authorities, signature = _there(enrolment).signed_trust()
        return Trust(
            coordinator=format_public(services.coordinator),
            authorities=authorities,
            signature=signature,
        )

    @router.post("/certificates", summary="Renew a certificate")
    def certify(body: CertificateRequest) -> Certificate:
        """For a device that joined, or the key holder; the request's signature is its credential."""
        certificate = _there(enrolment).certify(body.request)
        return Certificate(certificate=certificate, broker_host=host, broker_port=port)

    return router


def _check_request(body: Join, key: PublicKey) -> None:
    """Before a token is spent on it."""
    requested = read_request(body.request)
    if (requested.name, requested.public_key) != (body.name, key):
        raise DataError("the certificate is asked for under another name or key than the device's")


def _there(enrolment: Enrolment | None) -> Enrolment:
    if enrolment is None:
        raise HTTPException(
            HTTPStatus.NOT_FOUND, "this coordinator speaks without TLS: 'llmos up --tls'"
        )
    return enrolment
