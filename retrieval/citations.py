"""Citations looked up again: are the bytes that were quoted still there?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias

from .access import AllowedFolders
from .contract import Checked, Passage
from .errors import PathMissing, RetrievalError
from .sources import kind_of, most_bytes

Verdict: TypeAlias = Literal["same", "changed", "gone", "refused"]


def checked(
    access: AllowedFolders, max_bytes: int, passages: Sequence[Passage], extracted: Iterable[bytes]
) -> tuple[Checked, ...]:
    """One verdict for each passage; `extracted` are stored texts of converted files. A passage without its text (of a
    private collection) is the same as long as its whole file is. Blocking: run it in a thread."""
    texts = {hashlib.sha256(text).hexdigest(): text for text in extracted}

    @lru_cache(maxsize=1)  # citations of one file follow each other
    def read(path: str) -> tuple[bytes, str]:
        kind, _ = kind_of(Path(path).name) or ("", "")
        data, _ = access.read_bytes(Path(path), most_bytes(kind, max_bytes))
        return data, hashlib.sha256(data).hexdigest()

    def verdict(passage: Passage) -> Verdict:
        try:
            data, sha256 = read(passage.path)
        except PathMissing:
            return "gone"
        except RetrievalError:
            return "refused"
        whole = sha256 == passage.sha256
        if passage.extracted_sha256:
            if not whole:
                return "changed"
            data = texts.get(passage.extracted_sha256, b"")
            if not data:  # no longer indexed, and the same file
                return "same"
        quoted = data[passage.start_byte : passage.end_byte] == passage.text.encode() if passage.text else whole
        return "same" if quoted else "changed"

    return tuple(
        Checked(path=each.path, start_byte=each.start_byte, end_byte=each.end_byte, found=verdict(each))
        for each in passages
    )
