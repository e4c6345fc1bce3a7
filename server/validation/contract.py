"""What the validator is given and what it says."""

from __future__ import annotations

from enum import StrEnum

from rolecall.config.profile import Frozen


class Verdict(StrEnum):
    SUPPORTED = "supported"
    UNSUPPORTED = "unsupported"
    ABSTAIN = "abstain"


class Check(Frozen):
    """One check. Only a `decisive` one moves the overall verdict; the others inform."""

    name: str
    verdict: Verdict
    decisive: bool
    detail: str


class Validation(Frozen):
    """Unsupported if a decisive check is, supported if one is and none is unsupported, else abstain.

    `confidence` in [0, 1] is the measured precision of the deciding check on development data, 0 on abstention.
    """

    verdict: Verdict
    confidence: float
    checks: tuple[Check, ...]


def said(name: str, verdict: Verdict, detail: str) -> Check:
    """A check that decides unless it abstains."""
    return Check(name=name, verdict=verdict, decisive=verdict is not Verdict.ABSTAIN, detail=detail)


def fault(name: str, found: str, *, decisive: bool = True) -> Check:
    """An `unsupported` check where a fault was found (`found` says which), else an abstention."""
    verdict = Verdict.UNSUPPORTED if found else Verdict.ABSTAIN
    return Check(name=name, verdict=verdict, decisive=decisive and bool(found), detail=found or "nothing found")
