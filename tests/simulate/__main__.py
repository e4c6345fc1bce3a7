"""`python -m tests.simulate`: a day of an M4 Max, or a trace on a machine that was measured."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from rolecall.config.settings import load_settings

from .rates import NO_HOME, DeviceRates, m4_max
from .run import POLICIES, Run, others_bytes, simulate, summarise
from .workload import WITHOUT_MODEL, draw_day, read_trace

COLUMNS = "class | requests | answered in | first token | alone | refused | cut off | cold starts"


def main() -> None:
    ask = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
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
    sys.stdout.write(_report(options))


def _report(options: argparse.Namespace) -> str:
    profile = load_settings(NO_HOME, options.config, options.profile).profile
    rates = DeviceRates.model_validate_json(options.rates.read_bytes()) if options.rates else m4_max(profile)
    if options.trace:
        sessions, without_model = read_trace(options.trace), 0
    else:
        sessions = draw_day(profile, options.seed, options.hours)
        calls = sum(len(session.calls) for session in sessions)
        without_model = round(calls * WITHOUT_MODEL / (1 - WITHOUT_MODEL))
    # of a measured machine nothing is known about its other programs
    others = (lambda now_s: 0.0) if options.rates else others_bytes
    names = POLICIES if options.policy == "all" else [options.policy]
    runs = {name: simulate(profile, rates, sessions, POLICIES[name], others) for name in names}
    report = {
        "simulation": True,
        "device": rates.device,
        "profile": profile.name,
        "seed": options.seed,
        "without_model": without_model,
        "policies": {name: summarise(run, without_model) for name, run in runs.items()},
    }
    data, text = json.dumps(report, indent=1) + "\n", as_text(report) + "\n"
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "report.json").write_text(data)
        (options.out / "report.md").write_text(text)
        plot(runs, options.out / "memory.png")
    return data if options.json else text


def as_text(report: Mapping[str, Any]) -> str:
    """Tables in Markdown, as docs/simulation.md shows them."""
    lines = [
        f"SIMULATION, not a measurement: {report['device']}, profile {report['profile']}, seed {report['seed']}.",
        f"{report['without_model']} more requests needed no model. Seconds are p50 / p95 / p99.",
        "",
    ]
    for name, run in report["policies"].items():
        lines += [f"### {name}", "", f"| {COLUMNS} | p50<3 / p95<10 / p99<20 |", "|---" * 9 + "|"]
        for kind, group in [("all", run), *run["by_class"].items()]:
            figures = [_slashed(group[key]) for key in ("latency_s", "ttft_s", "alone_s")]
            counts = sum(group["refused"].values()), group["cut_off"], group["cold_starts"]
            row = kind, group["requests"], *figures, *counts, _slashed(group["targets"])
            lines.append(f"| {' | '.join(map(str, row))} |")
        mean, peak = run["mean_gb"], run["peak_gb"]
        ended = ", ".join(f"{count} {why}" for why, count in run["ended"].items())
        lines += [
            "",
            f"With those that needed no model: {_slashed(run['with_agents_s'])} s.",
            f"{run['loads']} loads, {run['load_s']:.0f} s in all, the longest {run['longest_load_s']:.1f} s; ended: "
            f"{ended}. Memory reserved {mean['reserved']:.1f} GB on average, {peak['reserved']:.1f} at most; measured "
            f"{mean['measured']:.1f} and {peak['measured']:.1f}; at most {run['most_models']} models at once.",
            "; ".join(f"{what}: {'met' if met else 'missed'}" for what, met in run["met"].items()) + ".",
            "",
        ]
    return "\n".join(lines)


def plot(runs: Mapping[str, Run], file: Path) -> None:
    """Memory over the day, a panel per policy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 2.4 * len(runs)), layout="constrained")
    panels = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, run) in zip(panels, runs.items(), strict=True):
        hours = [point[0] / 3600 for point in run.curve]
        gb = [[point[of] / 1e9 for point in run.curve] for of in range(1, 5)]
        panel.fill_between(hours, gb[1], color="#7aa6c2", linewidth=0, label="measured by the workers")
        panel.plot(hours, gb[0], color="#1f4e6b", linewidth=0.7, label="reserved")
        panel.plot(hours, gb[2], color="#b06a2c", linewidth=0.9, label="other programs")
        panel.plot(hours, gb[3], color="#444444", linewidth=0.9, linestyle="--", label="budget")
        panel.set(title=f"{name} (simulation)", ylabel="GB", xlim=(0, max(hours)), ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=4)
    panels[-1].set_xlabel("hour of the day")
    figure.savefig(file, dpi=80, metadata={"Software": None})


def _slashed(figures: Mapping[str, float | str | None]) -> str:
    shown = (
        "-" if value is None else value if isinstance(value, str) else f"{value:.3g}" for value in figures.values()
    )
    return " / ".join(shown)


if __name__ == "__main__":
    main()
