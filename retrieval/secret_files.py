"""Keys and credentials: files that are never read, indexed or written, whatever the user allows."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

SECRET_FOLDERS = frozenset(
    (".ssh", ".gnupg", ".aws", ".azure", ".kube", ".docker", ".password-store", "keychains", "keyrings", "gcloud")
)
SECRET_NAMES = (
    ".env*", "*.env", "*.pem", "*.key", "*.p8", "*.p12", "*.pfx", "*.jks", "*.keystore", "*.kdbx", "*.ppk",
    "*.keychain*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*", ".netrc", "_netrc", ".pgpass", ".my.cnf", ".npmrc",
    ".pypirc", ".htpasswd", ".git-credentials", "credentials", "credentials.json", "credentials.y*ml",
    "client_secret*.json", "service-account*.json", "secrets.json", "secrets.y*ml", "secrets.toml",
)  # fmt: skip
_SECRET_NAME = re.compile("|".join(fnmatch.translate(name) for name in SECRET_NAMES))
PRIVATE_KEY = re.compile(rb"\s*-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----")


def is_secret(path: Path) -> bool:
    """Whether a path names keys or credentials, which are never read whatever the allow list says."""
    folded = [part.casefold() for part in path.parts]
    return bool(folded) and (not SECRET_FOLDERS.isdisjoint(folded) or _SECRET_NAME.match(folded[-1]) is not None)
