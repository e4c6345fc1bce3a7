"""The state of this machine, of the resident models and of the index."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import psutil

from .contract import AgentContext, Parse, Value

_SAMPLE_S = 0.1


def compute(parse: Parse, context: AgentContext) -> Value | None:
    """The figure asked for. None where the platform does not tell it."""
    try:
        text = _PROBES[str(parse[0])](context)
    except (OSError, KeyError, psutil.Error, subprocess.TimeoutExpired):
        return None
    return Value(text, f"read from this machine at {context.now:%H:%M:%S}") if text else None


def _gb(count: float) -> str:
    return f"{count / 1e9:.1f} GB"


def _gib(count: float) -> str:
    """Memory comes in powers of two: 16 GiB, which is sold as 16 GB."""
    return f"{count / 2**30:.1f} GiB"


def _cpu_count(_: AgentContext) -> str:
    physical = psutil.cpu_count(logical=False)
    return f"{psutil.cpu_count()} logical cores" + (f", {physical} physical" if physical else "")


def _cpu_load(_: AgentContext) -> str:
    load = ", ".join(f"{value:.2f}" for value in psutil.getloadavg())
    return f"{psutil.cpu_percent(_SAMPLE_S):.0f}% in use; load average {load}"


def _cpu_model(context: AgentContext) -> str:
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        name = subprocess.run(command, capture_output=True, text=True, check=False, timeout=2).stdout.strip()
    else:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{name}, {_cpu_count(context)}" if name else ""


def _memory(_: AgentContext) -> str:
    memory = psutil.virtual_memory()
    used = f"{_gib(memory.total - memory.available)} used ({memory.percent:.0f}%)"
    return f"{_gib(memory.available)} available, {used}, {_gib(memory.total)} in total"


def _swap(_: AgentContext) -> str:
    swap = psutil.swap_memory()
    return f"{_gib(swap.used)} used of {_gib(swap.total)}"


def _disk(_: AgentContext) -> str:
    usage = psutil.disk_usage(str(Path.home()))
    return f"{_gb(usage.free)} free, {_gb(usage.used)} used of {_gb(usage.total)} (the disk of the home folder)"


def _battery(_: AgentContext) -> str:
    battery = psutil.sensors_battery()
    return f"{battery.percent:.0f}%, {'' if battery.power_plugged else 'not '}plugged in" if battery else ""


def _uptime(context: AgentContext) -> str:
    booted = datetime.fromtimestamp(psutil.boot_time(), tz=context.now.tzinfo)
    minutes = max(int((context.now - booted).total_seconds()) // 60, 0)
    days, hours = divmod(minutes // 60, 24)
    return f"up {days} days {hours} hours {minutes % 60} minutes, since {booted:%Y-%m-%d %H:%M %Z}"


def _top_memory(_: AgentContext) -> str:
    infos = [process.info for process in psutil.process_iter(["pid", "name", "memory_info"])]
    known = sorted((info for info in infos if info["memory_info"]), key=lambda info: -info["memory_info"].rss)
    return "; ".join(f"{info['name']} (pid {info['pid']}): {_gib(info['memory_info'].rss)}" for info in known[:3])


def _models(context: AgentContext) -> str:
    rows = [f"{item.model} ({', '.join(item.roles)}): {_gb(item.measured_bytes)}" for item in context.resident]
    return "; ".join(rows) or "No model is in memory."


def _index(context: AgentContext) -> str:
    if (index := context.index) is None:
        return "Nothing is indexed."
    age = f"; {index.age_s:.0f} s old" if index.age_s is not None else ""
    return (
        f"{index.indexed} files indexed, {index.pending} pending, {index.skipped} skipped, {index.failed} failed{age}"
    )


_PROBES: dict[str, Callable[[AgentContext], str]] = {
    "cpu_count": _cpu_count, "cpu_load": _cpu_load, "cpu_model": _cpu_model, "memory": _memory, "swap": _swap,
    "disk": _disk, "battery": _battery, "uptime": _uptime, "top_memory": _top_memory, "models": _models,
    "index": _index,
    "process_count": lambda _: f"{len(psutil.pids())} processes",
    "hostname": lambda _: platform.node(),
    "architecture": lambda _: platform.machine(),
    "python_version": lambda _: f"Python {platform.python_version()} (the one Rolecall runs on)",
    "os_name": lambda _: (
        f"macOS {release} ({platform.machine()})" if (release := platform.mac_ver()[0]) else platform.platform()
    ),
}  # fmt: skip
