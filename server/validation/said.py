"""How one check is written down: with a verdict that decides, or as a fault that was found or not."""

from __future__ import annotations

from .contract import Check, Verdict


def said(name: str, verdict: Verdict, detail: str) -> Check:
    """A check that decides unless it abstains."""
    return Check(name=name, verdict=verdict, decisive=verdict is not Verdict.ABSTAIN, detail=detail)


def fault(name: str, found: str, *, decisive: bool = True) -> Check:
    """An `unsupported` check where a fault was found (`found` says which), else an abstention."""
    verdict = Verdict.UNSUPPORTED if found else Verdict.ABSTAIN
    return Check(name=name, verdict=verdict, decisive=decisive and bool(found), detail=found or "nothing found")
