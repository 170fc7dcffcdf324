"""The randomness of one release: drawn once, kept until the receipt, then erased.

    R1  a release is made from one seed; after a crash the same seed gives the same bytes,
        so nobody ever sees two noisy views of one update
    R2  a seed is on disk before the first byte of its stream is used, readable by its owner only
    R3  streams under different labels, and of different seeds, are independent
    R4  how a stream is divided into calls does not matter: two calls for 3 and 4 numbers
        give the same as one call for 7

**What floating-point noise means.** The textbook guarantee is for real numbers. Noise in
floating point has gaps and patterns in its low-order bits that depend on the value it was
added to, and someone who sees all 53 bits of the sum can use them (Mironov, "On Significance
of the Least Significant Bits for Differential Privacy", CCS 2012). Here nobody sees them:
what is released is the noised update rounded at random to a grid of 12 or 16 bits, some 2^40
times coarser than those gaps. That takes the known attacks away; it is not a proof, which
would need noise that is drawn on the grid itself. A Gaussian of this module also never
exceeds 8.6 standard deviations; 1e-17 of the true distribution lies beyond.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from shared.errors import StorageError
from shared.files import disk_errors, sync_folder, write_durably
from shared.types import DeviceId, FloatVector, RoundNumber, RunId

SEED_BYTES: Final = 32


class ReleaseSeeds:
    """The seeds of releases that no receipt has come for yet, one file each."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def obtain(self, run: RunId, round_: RoundNumber, draw: Callable[[], bytes]) -> bytes:
        """Return the seed of this release: the one on disk, else a new one, on disk first (R2).

        Args:
            run: The run that asked for the update.
            round_: Its round.
            draw: Makes 32 bytes, :func:`operating_system_seed` outside of simulations.

        Raises:
            StorageError: the disk refused, or the seed on it is damaged.
        """
        path = self._path(run, round_)
        try:
            seed = path.read_bytes()
        except FileNotFoundError:
            seed = draw()
            if len(seed) != SEED_BYTES:
                raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}") from None
            with disk_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_durably(path, seed, mode=0o600)
        if len(seed) != SEED_BYTES:
            raise StorageError(
                f"{path} is damaged: the release it belongs to cannot be repeated, "
                "and drawing it anew would show a second view of the same update"
            )
        return seed

    def holds(self, run: RunId, round_: RoundNumber) -> bool:
        """Whether the seed of this release is still here."""
        return self._path(run, round_).exists()

    def erase(self, run: RunId, round_: RoundNumber) -> None:
        """Forget a seed once its release is receipted; harmless if there is none.

        :meth:`obtain` would draw anew afterwards: the caller has the receipt on disk first.
        The file is overwritten. On flash memory and copy-on-write file systems that does
        not reach every copy: whoever can read the raw medium is not held off by this.
        """
        path = self._path(run, round_)
        doomed = path.with_suffix(".erased")  # a crash in between never leaves a seed of zeros
        with disk_errors(path):
            with contextlib.suppress(FileNotFoundError):
                path.replace(doomed)
            try:
                with doomed.open("rb+") as file:
                    file.write(bytes(SEED_BYTES))
                    file.flush()
                    os.fsync(file.fileno())
            except FileNotFoundError:
                return
            doomed.unlink()
            sync_folder(self._folder)

    def _path(self, run: RunId, round_: RoundNumber) -> Path:
        # A run's name comes from the coordinator, so it never becomes part of a path.
        return self._folder / f"{hashlib.sha256(run.encode()).hexdigest()[:32]}-{round_:d}.seed"


def operating_system_seed() -> bytes:
    """Draw 32 bytes from the operating system."""
    return secrets.token_bytes(SEED_BYTES)


def simulation_seed(master: bytes, device: DeviceId, run: RunId, round_: RoundNumber) -> bytes:
    """Derive the seed of one release from a scenario's master seed, the same every time.

    For simulations and tests only: whoever knows ``master`` knows all noise.
    """
    name = json.dumps([device, run, round_], separators=(",", ":")).encode()
    return _derived(master, b"llmos simulation seed v1\0" + name)


class ReleaseStream:
    """Random numbers of one release: a ChaCha20 key stream for every label (R3, R4).

    Deterministic for one machine and one version of the libraries; the last bit of a
    Gaussian depends on the platform's logarithm and cosine.
    """

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
        self._seed = seed
        self._streams: dict[str, Callable[[bytes], bytes]] = {}

    def words(self, label: str, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` 64-bit words of a stream."""
        if label not in self._streams:
            key = _derived(self._seed, b"llmos release stream v1\0" + label.encode())
            cipher = Cipher(ChaCha20(key, bytes(16)), mode=None)
            self._streams[label] = cipher.encryptor().update
        return np.frombuffer(self._streams[label](bytes(8 * count)), dtype="<u8")

    def uniforms(self, label: str, count: int) -> FloatVector:
        """Return the next ``count`` numbers of a stream, uniform on [0, 1) in steps of 2^-53."""
        return np.asarray((self.words(label, count) >> np.uint64(11)) * 2.0**-53)

    def gaussians(self, label: str, count: int) -> FloatVector:
        """Return the next ``count`` standard normal numbers of a stream.

        Half of Box and Muller's transform: two uniforms for each number rather than for
        two, so that no spare is carried from one call to the next (R4).
        """
        pairs = self.uniforms(label, 2 * count).reshape(count, 2)
        radius = np.sqrt(-2 * np.log1p(-pairs[:, 0]))
        return np.asarray(radius * np.cos(2 * np.pi * pairs[:, 1]))


def _derived(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=SEED_BYTES, salt=None, info=info).derive(secret)
