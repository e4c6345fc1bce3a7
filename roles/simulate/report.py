"""What a run shows: percentiles, memory, and the mission's targets with what arithmetic alone forbids."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rolecall.config.errors import ConfigError
from rolecall.config.profile import Profile

from .rates import DeviceRates
from .run import Outcome, Record
from .worker import Call

TARGETS_S = {"p50": 3.0, "p95": 10.0, "p99": 20.0}
COLD_TARGET_S, MEAN_TARGET_GB, MODELS_TARGET = 30.0, 70.0, 3


def summarise(record: Record, profile: Profile, rates: DeviceRates, without_model: int = 0) -> dict[str, Any]:
    """The figures of one run, ready for JSON. Seconds and decimal GB.

    `alone_s` is what the same calls take with the machine to themselves, their model loaded and their document's
    prefix cached: what no manager can better. A target is `met`, `missed`, or `impossible` where even that misses it.
    `with_agents_s` counts `without_model` more requests, at 0 s.
    """
    kinds = sorted({outcome.call.kind for outcome in record.outcomes})
    loads = [event for event in record.events if event.kind == "loaded"]
    cold_s = max((event.seconds for event in loads), default=0.0)
    answered_s = [outcome.latency_s for outcome in record.outcomes if not outcome.refused]
    mean_gb = {
        "reserved": record.reserved_byte_s / max(record.seconds, 1e-9) / 1e9,
        "measured": record.measured_byte_s / max(record.seconds, 1e-9) / 1e9,
    }
    figures: dict[str, Any] = _rounded(
        {
            **_group(record.outcomes, profile, rates),
            "by_class": {k: _group([o for o in record.outcomes if o.call.kind == k], profile, rates) for k in kinds},
            "with_agents_s": _percentiles(answered_s + [0.0] * without_model),
            "loads": len(loads),
            "load_s": sum(event.seconds for event in loads),
            "longest_load_s": cold_s,
            "ended": dict(sorted(Counter(event.kind for event in record.events if event.kind != "loaded").items())),
            "mean_gb": mean_gb,
            "peak_gb": {"reserved": record.peak_reserved_bytes / 1e9, "measured": record.peak_measured_bytes / 1e9},
            "most_models": record.most_models,
            "met": {
                f"average under {MEAN_TARGET_GB:g} GB": mean_gb["reserved"] < MEAN_TARGET_GB,
                f"cold start under {COLD_TARGET_S:g} s": cold_s < COLD_TARGET_S,
                f"{MODELS_TARGET} models or more at once": record.most_models >= MODELS_TARGET,
            },
        }
    )
    return figures


def _group(outcomes: Sequence[Outcome], profile: Profile, rates: DeviceRates) -> dict[str, Any]:
    answered = [outcome for outcome in outcomes if not outcome.refused]
    latency = _percentiles([outcome.latency_s for outcome in answered])
    alone = _percentiles([alone_s(outcome.call, profile, rates) for outcome in outcomes])
    targets = {
        name: "met" if latency[name] < limit else "missed" if alone[name] < limit else "impossible"
        for name, limit in TARGETS_S.items()
    }
    return {
        "requests": len(outcomes),
        "refused": dict(sorted(Counter(outcome.refused for outcome in outcomes if outcome.refused).items())),
        "cut_off": sum(outcome.finish == "timeout" for outcome in answered),
        "cold_starts": sum(outcome.cold for outcome in answered),
        "latency_s": latency,
        "ttft_s": _percentiles([o.first_token_s for o in answered if not math.isnan(o.first_token_s)]),
        "alone_s": alone,
        "targets": targets,
    }


def alone_s(call: Call, profile: Profile, rates: DeviceRates) -> float:
    """Seconds of a call that has the device to itself, its model loaded and its document's prefix cached."""
    spec = profile.roles.get(call.role)
    model = rates.models[spec.model if spec else profile.embedder.model]
    cached = min(call.document_tokens, call.prompt_tokens - 1)
    prefill_s = (call.prompt_tokens - cached) / model.prefill_rate((cached + call.prompt_tokens) / 2)
    decode_s = call.completion_tokens * model.step_s(1, call.prompt_tokens + call.completion_tokens / 2)
    return rates.request_overhead_s + prefill_s + decode_s


def as_text(report: Mapping[str, Any]) -> str:
    """Tables in Markdown, as docs/simulation.md shows them."""
    lines = [f"SIMULATION, not a measurement: {report['device']}, profile {report['profile']}, seed {report['seed']}."]
    lines += [f"{report['without_model']} more requests needed no model. Seconds are p50 / p95 / p99.", ""]
    head = "requests | answered in | first token | alone | refused | cut off | cold starts | p50<3 / p95<10 / p99<20"
    for name, run in report["policies"].items():
        lines += [f"### {name}", "", f"| class | {head} |", "|---" * 9 + "|"]
        for kind, group in [("all", run), *run["by_class"].items()]:
            figures = " | ".join(_slashed(group[key].values()) for key in ("latency_s", "ttft_s", "alone_s"))
            counts = f"{sum(group['refused'].values())} | {group['cut_off']} | {group['cold_starts']}"
            targets = _slashed(group["targets"].values())
            lines.append(f"| {kind} | {group['requests']} | {figures} | {counts} | {targets} |")
        mean, peak, ended = run["mean_gb"], run["peak_gb"], run["ended"]
        lines += [
            "",
            f"With those that needed no model: {_slashed(run['with_agents_s'].values())} s.",
            f"{run['loads']} loads, {run['load_s']:.0f} s in all, the longest {run['longest_load_s']:.1f} s; ended: "
            + ", ".join(f"{count} {why}" for why, count in ended.items())
            + f". Memory reserved {mean['reserved']:.1f} GB on average, {peak['reserved']:.1f} at most; measured "
            f"{mean['measured']:.1f} and {peak['measured']:.1f}; at most {run['most_models']} models at once.",
            "; ".join(f"{what}: {'met' if met else 'missed'}" for what, met in run["met"].items()) + ".",
            "",
        ]
    return "\n".join(lines)


def plot(records: Mapping[str, Record], file: Path) -> None:
    """Memory over the day, a panel per policy. Raises ConfigError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError(
            "The plot needs matplotlib.", found="not installed", advice="Get it with: pip install 'rolecall[dev]'"
        ) from None
    figure = Figure(figsize=(9, 2.4 * len(records)), layout="constrained")
    panels = figure.subplots(len(records), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for panel, (name, record) in zip(panels, records.items(), strict=True):
        hours = [point[0] / 3600 for point in record.curve]
        gb = [[point[of] / 1e9 for point in record.curve] for of in range(1, 5)]
        panel.fill_between(hours, gb[1], color="#7aa6c2", linewidth=0, label="measured by the workers")
        panel.plot(hours, gb[0], color="#1f4e6b", linewidth=0.7, label="reserved")
        panel.plot(hours, gb[2], color="#b06a2c", linewidth=0.9, label="other programs")
        panel.plot(hours, gb[3], color="#444444", linewidth=0.9, linestyle="--", label="budget")
        panel.set(title=f"{name} (simulation)", ylabel="GB", xlim=(0, max(hours)), ylim=(0, None))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small", ncols=4)
    panels[-1].set_xlabel("hour of the day")
    figure.savefig(file, dpi=80, metadata={"Software": None})


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    """By rank: the smallest value that so many of a hundred do not exceed; nan of none."""
    ranked = sorted(values)
    return {f"p{q}": ranked[max(0, math.ceil(q / 100 * len(ranked)) - 1)] if ranked else math.nan for q in (50, 95, 99)}


def _slashed(values: Any) -> str:
    return " / ".join(value if isinstance(value, str) else "-" if value is None else f"{value:.3g}" for value in values)


def _rounded(value: Any) -> Any:  # JSON has no nan
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
