"""Citations looked up again: are the bytes that were quoted still there?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

from .contract import Checked, Passage, Verdict
from .errors import PathMissing, RetrievalError
from .sources import Sources


def checked(sources: Sources, passages: Sequence[Passage], extracted: Iterable[bytes]) -> tuple[Checked, ...]:
    """One verdict for each passage; `extracted` are stored texts of converted files. A passage without its text (of a
    private collection) is the same as long as its whole file is. Blocking: run it in a thread."""
    texts = {hashlib.sha256(text).hexdigest(): text for text in extracted}

    read = lru_cache(maxsize=1)(sources.read)  # citations of one file follow each other

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
