"""Passwords: which may be chosen, and what is kept of them.

W1  of a password only its Argon2id hash is kept
W2  to compare takes as long where there is nothing to compare with
W3  what is chosen has 12 to 1024 characters, and is neither the name nor among the commonest

By NIST SP 800-63B (3.1.1.2): length, no rules of composition, every letter of every script. The
only module that knows argon2.
"""

from __future__ import annotations

import secrets
import unicodedata
from typing import Final

from shared.errors import ConfigError
from shared.extras import require

SHORTEST: Final = 12
LONGEST: Final = 1024
"""Characters, after normalisation."""

MEMORY_KIB: Final = 64 * 1024
ROUNDS: Final = 3
"""RFC 9106, second recommended option, on one thread: 0.27 s on two cores of 2.5 GHz."""

_LISTED: Final = """
000000000000 111111111111 123123123123 123456123456 123456654321 123456789012 1234567890123
1234567890qw 123456789abc 123qweasdzxc 1q2w3e4r5t6y 1qaz2wsx3edc 1qaz2wsx3edc4rfv 987654321012
aaaaaaaaaaaa abc123abc123 abcd12345678 abcdefgh1234 abcdefghijkl adminadminadmin administrator
asdfghjkl123 baseball1234 changemechangeme correcthorsebatterystaple football1234 iloveyou1234
iloveyouiloveyou letmeinletmein llmosllmosllmos password1234 password12345 password123456
password123! passwordpassword princess1234 q1w2e3r4t5y6 qazwsxedcrfv qwerasdfzxcv qwerty123456
qwertyqwerty qwertyuiop12 qwertyuiop123 qwertyuiop[] qwertyuiopas qwertzuiop12 sunshine1234
welcome12345 welcomewelcome zaq12wsxcde3
"""
COMMONEST: Final = frozenset(_LISTED.split())
"""Of lists of passwords that leaked, those that are long enough; compared without case."""


def check_choice(password: str, *, name: str) -> None:
    """Refuse a password that somebody called ``name`` may not choose (W3).

    Raises:
        ConfigError: with every reason.
    """
    problems = []
    normal = _normal(password)
    folded = normal.casefold()
    if not SHORTEST <= len(normal) <= LONGEST:
        problems.append(f"password: has {SHORTEST} to {LONGEST} characters, not {len(normal)}")
    if folded and not folded.replace(name.casefold(), ""):
        problems.append("password: is the name; choose one that says nothing about you")
    if folded in COMMONEST or len(set(folded)) == 1:
        problems.append("password: is among those that are tried first; choose a sentence")
    if problems:
        raise ConfigError(problems, source="password")


class Passwords:
    """Hashes passwords and compares with hashes. Safe on any thread."""

    def __init__(self, *, memory_kib: int = MEMORY_KIB, rounds: int = ROUNDS) -> None:
        """Hash with so much memory, so many times over it.

        Raises:
            DependencyMissing: the library is not installed.
        """
        argon2 = require("argon2", extra="coordinator")
        self._hasher = argon2.PasswordHasher(
            time_cost=rounds, memory_cost=memory_kib, parallelism=1
        )
        self._mismatch: type[Exception] = argon2.exceptions.VerifyMismatchError
        self._nobodys = self.hashed(secrets.token_urlsafe(32))

    def hashed(self, password: str) -> str:
        """What is kept of a password: the hash with its salt and parameters (W1)."""
        return str(self._hasher.hash(_bytes(password)))

    def fits(self, password: str, kept: str | None) -> bool:
        """Whether ``kept`` is of ``password``; where nothing is kept, as slowly (W2)."""
        try:
            self._hasher.verify(kept or self._nobodys, _bytes(password))
        except self._mismatch:
            return False
        return kept is not None


def _normal(password: str) -> str:
    """One spelling for what keyboards and systems spell in several ways."""
    return unicodedata.normalize("NFKC", password)


def _bytes(password: str) -> bytes:
    # JSON can spell lone surrogates, which no encoding has.
    return _normal(password).encode(errors="surrogatepass")
