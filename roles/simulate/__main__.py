"""`python -m rolecall.roles.simulate`: a day of an M4 Max, or a trace on a machine that was measured."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

import structlog

from rolecall.config.errors import RolecallError
from rolecall.config.settings import load_settings

from .rates import NO_HOME, m4_max, read_rates
from .report import as_text, plot, summarise
from .run import POLICIES, others_bytes, simulate
from .workload import WITHOUT_MODEL, draw_day, read_trace


def main() -> int:
    ask = argparse.ArgumentParser(prog="python -m rolecall.roles.simulate", description=__doc__)
    ask.add_argument("--profile", default="mac-128")
    ask.add_argument("--config", type=Path, help="a settings file whose roles are laid over the profile's")
    ask.add_argument("--seed", type=int, default=1)
    ask.add_argument("--hours", type=float, default=24.0, help="of the drawn day, from midnight")
    ask.add_argument("--rates", type=Path, help="JSON of a measured device; see rates.py")
    ask.add_argument("--trace", type=Path, help="JSONL of requests in place of the drawn day; see workload.py")
    ask.add_argument("--policy", choices=[*POLICIES, "all"], default="all")
    ask.add_argument("--out", type=Path, help="a folder for report.json, report.md and memory.png")
    ask.add_argument("--json", action="store_true", help="print JSON in place of tables")
    options = ask.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        return _report(options)
    except RolecallError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _report(options: argparse.Namespace) -> int:
    profile = load_settings(NO_HOME, options.config, options.profile).profile
    models = sorted({spec.model for spec in profile.roles.values()})
    rates = read_rates(options.rates) if options.rates else m4_max(models)
    drawn = draw_day(profile, options.seed, options.hours)
    sessions = read_trace(options.trace, profile) if options.trace else drawn
    # of a measured machine nothing is known about its other programs
    others = (lambda now_s: 0.0) if options.rates else others_bytes
    names = list(POLICIES) if options.policy == "all" else [options.policy]
    records = {name: simulate(profile, rates, sessions, POLICIES[name], others) for name in names}
    calls = sum(len(session.calls) for session in sessions)
    without_model = 0 if options.trace else round(calls * WITHOUT_MODEL / (1 - WITHOUT_MODEL))
    report = {
        "simulation": True,
        "device": rates.device,
        "profile": profile.name,
        "seed": options.seed,
        "without_model": without_model,
        "policies": {name: summarise(record, profile, rates, without_model) for name, record in records.items()},
    }
    data = json.dumps(report, indent=1) + "\n"
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.json").write_text(data)
        (options.out / "report.md").write_text(as_text(report) + "\n")
        plot(records, options.out / "memory.png")
    sys.stdout.write(data if options.json else as_text(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
