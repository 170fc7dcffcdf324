"""NVFlare's own homomorphic encryption, driven as its workflow drives it; the only importer of nvflare.

Its client filter encrypts a dictionary of arrays, one CKKS vector each, its messages carry them in
its own serialisation, its aggregator adds what it reads, and its client filter decrypts the result.
Parameters are those of its provisioning (``HEBuilder``), whose secret key all clients share.

Installed by the extra ``bench``. With tenseal in another version than NVFlare pins for its extra
``he``: the one that is here serves both sides.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from shared.extras import require
from shared.types import FloatVector

_ROUND = 0


def is_installed() -> bool:
    """Whether the extra ``bench`` is here."""
    return importlib.util.find_spec("nvflare") is not None


class NvflareSum:
    """One round of encrypted averaging among clients of equal weight."""

    def __init__(self) -> None:
        """Provision a context for clients and one for the server.

        Raises:
            DependencyMissing: the extra ``bench`` is not installed.
        """
        require("nvflare", extra="bench")
        import tenseal
        from nvflare.apis.fl_context import FLContext
        from nvflare.app_common.app_constant import AppConstants
        from nvflare.app_opt.he import decomposers
        from nvflare.lighter.impl.he import HEBuilder

        builder = HEBuilder()
        builder.initialize(None, None)
        self._context = tenseal.context_from(builder.get_serialized_context(is_client=True))
        decomposers.register()
        self._at = FLContext()
        self._at.set_prop(AppConstants.CURRENT_ROUND, _ROUND, private=True, sticky=False)
        self._aggregator = self._new_aggregator()

    def encrypt(self, tensors: Mapping[str, FloatVector]) -> Any:
        """What the client's filter makes of its tensors."""
        from nvflare.apis.dxo import DXO, DataKind
        from nvflare.apis.fl_context import FLContext
        from nvflare.app_opt.he.model_encryptor import HEModelEncryptor

        encryptor = HEModelEncryptor(weigh_by_local_iter=False)
        encryptor.tenseal_context, encryptor.encrypt_layers = self._context, [True]
        self._at.set_peer_context(FLContext())
        dxo = DXO(DataKind.WEIGHT_DIFF, data=dict(tensors))
        with _quiet():
            encrypted = encryptor.process_dxo(dxo, dxo.to_shareable(), self._at)
        return encrypted.to_shareable()

    def message(self, encrypted: Any) -> bytes:
        """What the client sends."""
        from nvflare.fuel.utils import fobs

        return bytes(fobs.dumps(encrypted))

    def ciphertext_bytes(self, encrypted: Any) -> int:
        """Of a message, the ciphertexts alone: each vector carries its context beside."""
        from nvflare.apis.dxo import from_shareable

        return sum(len(vector.serialize()) for vector in from_shareable(encrypted).data.values())

    def add(self, message: bytes, client: str) -> None:
        """Read one client's message and add it to the running sum."""
        from nvflare.apis.fl_constant import ReservedKey
        from nvflare.app_common.app_constant import AppConstants
        from nvflare.fuel.utils import fobs

        with _quiet():
            shareable = fobs.loads(message)
            shareable.set_peer_props({ReservedKey.IDENTITY_NAME: client})
            shareable.add_cookie(AppConstants.CONTRIBUTION_ROUND, _ROUND)
            accepted = self._aggregator.accept(shareable, self._at)
        assert accepted, "NVFlare's aggregator refused a contribution"

    def total(self) -> bytes:
        """The encrypted mean as the server sends it; a new sum begins."""
        from nvflare.fuel.utils import fobs

        with _quiet():
            mean = self._aggregator.aggregate(self._at)
            self._aggregator = self._new_aggregator()
        return bytes(fobs.dumps(mean))

    def open(self, total: bytes, names: Sequence[str]) -> FloatVector:
        """The mean, its tensors behind each other."""
        from nvflare.apis.dxo import from_shareable
        from nvflare.app_opt.he.model_decryptor import HEModelDecryptor
        from nvflare.fuel.utils import fobs

        decryptor = HEModelDecryptor()
        decryptor.tenseal_context = self._context
        with _quiet():
            shareable = fobs.loads(total)
            opened = decryptor.process_dxo(from_shareable(shareable), shareable, self._at)
        return np.concatenate([np.asarray(opened.data[name], np.float64) for name in names])

    def _new_aggregator(self) -> Any:
        from nvflare.apis.dxo import DataKind
        from nvflare.apis.event_type import EventType
        from nvflare.app_opt.he.intime_accumulate_model_aggregator import (
            HEInTimeAccumulateWeightedAggregator,
        )

        aggregator = HEInTimeAccumulateWeightedAggregator(expected_data_kind=DataKind.WEIGHT_DIFF)
        aggregator.handle_event(EventType.START_RUN, self._at)
        return aggregator


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what tenseal prints about long vectors, and NVFlare logs for want of an engine."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
