"""Whether a past decision comes out the same now: recomputed from its receipt, and every difference named."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from rolecall.config.profile import Frozen
from rolecall.retrieval.contract import Passage, Verdict

from ..telemetry.store import Kept, Receipt
from .contract import Decision, Features, Snapshot, State
from .decide import decide
from .router import Router
from .snapshot import altered

_AS_RECORDED = ("prompt_tokens", "has_paths", "vote", "unasked")
"""Features that come not from the text alone: the sizes of files as they were, and what a model said."""
_NAMES = re.compile(r"(?:^|\n\n)(?:request|question|task|query|focus): ")
_PARAGRAPH = re.compile(r"(?=\n\n)")
_HASHES = ("snapshot_sha256", "sha256")
"""Of a decision: under another policy they differ in any case."""


Check = Callable[[Sequence[Passage]], Awaitable[Sequence[Verdict]]]
"""Citations looked up again, in order."""


class Difference(Frozen):
    """`what` is `receipt` or `snapshot` (their bytes), a part of the snapshot, `features.X`, `decision.X`, or
    `citation PATH:LINES`, which is `changed`, `gone` or `refused` now."""

    what: str
    recorded: Any
    now: Any


class Replay(Frozen):
    """What became of one receipt. `note`: `no_decision`, or why the text was not read again, so that its features count
    as recorded: `content_not_kept`, `content_cut`, `not_in_content` (it was changed before it was routed)."""

    id: str
    same: bool
    differences: tuple[Difference, ...] = ()
    note: str = ""


async def replay(kept: Kept, snapshots: Mapping[str, bytes], router: Router, check: Check | None = None) -> Replay:
    """Recompute a receipt's decision with what `router` has now, and `check` its citations; `snapshots` are those kept,
    by hash. Raises RolecallError: the text cannot be embedded now, or the citations cannot be looked up."""
    receipt, differences, note = kept.receipt(), list[Difference](), ""
    if kept.altered or receipt is None:
        differences.append(Difference(what="receipt", recorded=kept.recorded_sha256, now=kept.sha256))
    if receipt is not None and receipt.decision is None:
        note = "no_decision"
    elif receipt is not None:
        try:
            recorded = Features.model_validate(receipt.features)
            state, then = State.model_validate(receipt.router_state), Decision.model_validate(receipt.decision)
        except ValidationError as error:
            differences.append(Difference(what="receipt", recorded=None, now=str(error.errors()[0]["loc"])))
        else:
            now, note = await _features(receipt, recorded, state, router)
            snapshot = router.snapshot()
            differences += _unlike("features.", recorded, now)
            differences += _policy(then.snapshot_sha256, snapshots.get(then.snapshot_sha256), snapshot)
            left_out = () if then.snapshot_sha256 == snapshot.sha256 else _HASHES
            differences += _unlike("decision.", then, decide(now, snapshot, state), left_out)
    if receipt is not None and receipt.citations and check:
        for cited, found in zip(receipt.citations, await check(receipt.citations), strict=True):
            if found != "same":
                what = f"citation {cited.path}:{cited.start_line}-{cited.end_line}"
                differences.append(Difference(what=what, recorded="same", now=found))
    return Replay(id=kept.id, same=not differences, differences=tuple(differences), note=note)


async def _features(receipt: Receipt, recorded: Features, state: State, router: Router) -> tuple[Features, str]:
    """What the router reads of the text now, and a note where it cannot."""
    if receipt.content is None:
        return recorded, "content_not_kept"
    if (text := routed_text(receipt.content.request, recorded.text_sha256)) is None:
        return recorded, "content_cut" if "request" in receipt.content.cut else "not_in_content"
    kind = state.fixed_task_type
    read = await router.features(text) if kind is None else router.given(text, kind)
    return read.model_copy(update={name: getattr(recorded, name) for name in _AS_RECORDED}), ""


def _policy(recorded_sha256: str, kept: bytes | None, now: Snapshot) -> list[Difference]:
    """The parts of the snapshot that differ by name; the snapshot where the recorded one is damaged or not known."""
    then, found = None, list[Difference]()
    if kept is not None:
        try:
            then = Snapshot.model_validate_json(kept)
            wrong = ", ".join(altered(then))
        except ValidationError:
            wrong = "not readable"
        if wrong:
            found.append(Difference(what="snapshot", recorded=recorded_sha256, now=f"altered: {wrong}"))
    if recorded_sha256 != now.sha256:
        parts = then.parts if then else now.parts
        names = sorted(name for name in parts | now.parts if parts.get(name) != now.parts.get(name))
        found += [Difference(what=name, recorded=parts.get(name), now=now.parts.get(name)) for name in names]
        if not found:
            found.append(Difference(what="snapshot", recorded=recorded_sha256, now=now.sha256))
    return found


def _unlike(prefix: str, recorded: Frozen, now: Frozen, but: Sequence[str] = ()) -> list[Difference]:
    then, here = recorded.model_dump(mode="json"), now.model_dump(mode="json")
    names = (name for name in here if name not in but and then[name] != here[name])
    return [Difference(what=f"{prefix}{name}", recorded=then[name], now=here[name]) for name in names]


def routed_text(request: str, sha256: str) -> str | None:
    """The text that was decided on: what stands in the kept request under an argument's name and has this hash.

    None where that text was cut. Other arguments may follow, each a paragraph.
    """
    if hashlib.sha256().hexdigest() == sha256:
        return ""
    for name in _NAMES.finditer(request):
        text, digest = request[name.end() :], hashlib.sha256()
        start = 0
        for end in (*(found.start() for found in _PARAGRAPH.finditer(text)), len(text)):
            digest.update(text[start:end].encode())
            if digest.hexdigest() == sha256:
                return text[:end]
            start = end
    return None
