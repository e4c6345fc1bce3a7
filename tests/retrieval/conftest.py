"""What tests of the retrieval agent share."""

from __future__ import annotations

import pytest

from .embedding import HashEmbedder


@pytest.fixture
def embedder() -> HashEmbedder:
    return HashEmbedder()
