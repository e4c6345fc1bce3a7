"""What the name of a file alone tells: that it holds secrets, or that a glob means it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

SECRET_FOLDERS = frozenset(
    (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", "keychains", "keyrings", "gcloud")
)
SECRET_NAMES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "*.keychain*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc",
    ".pypirc", ".htpasswd", ".git-credentials", "credentials", "credentials.json", "credentials.toml",
    "credentials.y*ml", "client_secret*.json", "service-account*.json", "secrets.json", "secrets.y*ml", "secrets.toml",
)  # fmt: skip
_SECRET_NAME = re.compile("|".join(fnmatch.translate(name) for name in SECRET_NAMES))


def is_secret(path: Path) -> bool:
    """Whether a path names keys or credentials, which are never read, indexed or written whatever is allowed."""
    folded = [part.casefold() for part in path.parts]
    return bool(folded) and (not SECRET_FOLDERS.isdisjoint(folded) or _SECRET_NAME.match(folded[-1]) is not None)


def has_magic(part: str) -> bool:
    return not set("*?[").isdisjoint(part)


def glob_matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a glob, both as their names; `**` stands for any number of names.

    Quick on every input: patterns come from clients, and a regular expression of many stars would not be.
    """
    at = i = 0
    last, retry = -1, 0
    while at < len(parts):
        if i < len(pattern) and pattern[i] == "**":
            last, retry, i = i, at, i + 1
        elif i < len(pattern) and fnmatch.fnmatchcase(parts[at], pattern[i]):
            at, i = at + 1, i + 1
        elif last >= 0:  # the last `**` takes one name more
            retry += 1
            at, i = retry, last + 1
        else:
            return False
    return all(part == "**" for part in pattern[i:])
