"""The reward curve of `rolecall eval run llmrouter --json` as a picture: docs/llmrouter.svg.

`python -m tests.server.evaluation.curve SCORE.json FILE.svg` draws mean reward, quality - weight x cost.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure


def main(score: Path, file: Path) -> None:
    curve = json.loads(score.read_text("utf-8"))["detail"]["curve"]
    with matplotlib.rc_context({"svg.hashsalt": "rolecall", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        for name, values in curve.items():
            if name != "cost_weight":
                axes.plot(curve["cost_weight"], values, label=name, linewidth=2.2 if name == "selector" else 1.1)
        axes.set(xlabel="cost weight", ylabel="mean reward: quality - weight x cost")
        axes.legend(fontsize="small")
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
