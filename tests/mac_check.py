"""What only a Mac can show, in one command (`make mac-check`): planned against measured, on Metal.

Writes one JSON file without names of users, paths or serial numbers, fit to be shared, and prints a summary. Without
Metal it runs through on the CPU and says so (`"metal": false`).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import psutil

from rolecall.config.home import Home
from rolecall.config.settings import Settings, load_settings
from rolecall.roles.contract import Event, Generated, GenerationRequest, Message, Prefilling, Role
from rolecall.roles.footprint import Footprint, footprints, prefill_step_tokens
from rolecall.roles.manager import ModelManager, start_process
from rolecall.roles.plan import working_set_bytes
from rolecall.roles.starter import TEXT_4BIT, TEXT_FP32
from rolecall.server.protocol import VERSION
from tests.bench.stage import Clock, filler, models_folder, quiet, workers
from tests.roles.tiny import kv_bytes

PACKAGES = ("mlx", "mlx-lm", "mcp", "llguidance", "transformers", "torch", "sentence-transformers", "lancedb")
PROBE_TOKENS = {True: 1000, False: 300}  # with and without Metal
PROMPT_TOKENS = {True: 1500, False: 500}
DECODE_TOKENS = 64
MEMORY_BACK_S = 10.0
PATIENCE_S = 1800.0
METAL = sys.platform == "darwin"
STORY = "Write a long story about a lighthouse and its keeper, with many details."

DEVICE = """
import json, mlx.core as mx
from rolecall.roles.worker.blas import find_fast_blas
metal = mx.metal.is_available()
info = mx.device_info() if metal else {}
kept = ("device_name", "architecture", "memory_size", "max_recommended_working_set_size", "max_buffer_length")
print(json.dumps({"metal": metal, "device": {k: info[k] for k in kept if k in info}, "blas": find_fast_blas()[0]}))
"""

# What a worker does before its first request, and what it left the limit at: setting it gives the old value back.
WIRED = """
import json, sys
from pathlib import Path
from rolecall.roles.worker.blas import load_fast_blas
load_fast_blas()
import mlx.core as mx
from rolecall.roles.worker.mlx_text import TextEngine
from rolecall.roles.worker.wire import WorkerSpec
engine = TextEngine(lambda *_: None)
engine.load(WorkerSpec("text", Path(sys.argv[1]), "m", 1024, 1, 1 << 28), lambda *_: None)
print(json.dumps(mx.set_wired_limit(0) if mx.metal.is_available() else None))
"""

# mlx-lm itself on the files: what the weights take, and the cache after a real prefill in chunks.
PROBE = """
import json, sys
from pathlib import Path
from rolecall.roles.worker.blas import load_fast_blas
load_fast_blas()
import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
tokens, chunk = int(sys.argv[2]), int(sys.argv[3])
model, _ = load_model(Path(sys.argv[1]))
mx.eval(model.parameters())
mx.clear_cache()
active = mx.get_active_memory()
cache = make_prompt_cache(model)
for start in range(0, tokens, chunk):
    model(mx.ones((1, min(chunk, tokens - start)), dtype=mx.int32), cache=cache)
    mx.eval([layer.state for layer in cache])
weights = sum(array.nbytes for _, array in tree_flatten(model.parameters()))
print(json.dumps({"weights_bytes": weights, "active_bytes": active, "kv_bytes": sum(c.nbytes for c in cache)}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mac-check.json"), help="the file to write")
    parser.add_argument("--no-tests", action="store_true", help="leave the live tests out")
    options = parser.parse_args()
    quiet()
    report: dict[str, Any] = {"rolecall": VERSION, "taken_at": datetime.now(UTC).isoformat(timespec="minutes")}
    report |= machine()
    say(f"{report['chip']}, {report['memory_bytes'] / 1e9:.0f} GB, {report['system']}")
    say(
        f"Metal: {report['device']['device_name']}" if report["metal"] else "No Metal here: everything runs on the CPU."
    )
    models = models_folder()
    before = wired_limit_mb()
    report["models"] = [anyio.run(check_model, models, *each) for each in present(models)]
    report["live_tests"] = None if options.no_tests else live_tests()
    after = wired_limit_mb()
    report["wired_limit"] = {
        "before_mb": before,
        "after_mb": after,
        "unchanged": before == after,
        "of_a_worker_bytes": python(WIRED, str(models / TEXT_FP32)),
    }
    left = [process.pid for process in workers()]
    report["processes_left"] = len(left)
    report["problems"] = problems(report)
    text = json.dumps(report, indent=1, ensure_ascii=False)
    assert_shareable(text)
    options.out.write_text(text + "\n")
    summary(report)
    say(f"\nWritten: {options.out} (no names, paths or serial numbers in it). Please share it.")
    return 1 if report["problems"] else 0


def machine() -> dict[str, Any]:
    mac = sys.platform == "darwin"
    chip = sysctl("machdep.cpu.brand_string") if mac else None
    return {
        "platform": f"{sys.platform}-{platform.machine()}",
        "chip": chip or f"{platform.machine()}, {psutil.cpu_count(logical=False) or psutil.cpu_count()} cores",
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "available_bytes": psutil.virtual_memory().available,
        "system": f"macOS {platform.mac_ver()[0]}" if mac else platform.system(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "working_set_bytes": working_set_bytes(),
        **python(DEVICE),
    }


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def sysctl(name: str) -> str | None:
    done = subprocess.run(["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def wired_limit_mb() -> int | None:
    """The system's own limit of wired memory, which only its user may change; 0 is macOS's default."""
    value = sysctl("iogpu.wired_limit_mb") if sys.platform == "darwin" else None
    return int(value) if value else None


def python(code: str, *arguments: str) -> Any:
    """The JSON that a program of its own prints last."""
    env = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise SystemExit(f"A probe failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def present(models: Path) -> list[tuple[Settings, Role]]:
    """A role for each model of the user's profile that is on disk, and for the starter's."""
    home = Home.find()
    settings, starter = load_settings(home), load_settings(home, profile="starter")
    posts = {spec.model: (settings, Role(name)) for name, spec in reversed(settings.profile.roles.items())}
    posts.setdefault(TEXT_FP32, (starter, Role.REASONING))
    posts[TEXT_4BIT] = (with_model(starter, Role.CODING, TEXT_4BIT), Role.CODING)
    return [post for model, post in posts.items() if (models / model / "config.json").is_file()]


def with_model(settings: Settings, role: Role, model: str) -> Settings:
    spec = settings.profile.roles[role].model_copy(update={"model": model})
    profile = settings.profile.model_copy(update={"roles": {**settings.profile.roles, role.value: spec}})
    return settings.model_copy(update={"profile": profile})


async def check_model(models: Path, settings: Settings, role: Role) -> dict[str, Any]:
    """One model through its life: planned, loaded, asked alone and twice at once, cancelled, unloaded."""
    spec = settings.profile.roles[role]
    say(f"\n{spec.model} ({role})")
    settings = settings.model_copy(update={"host": settings.host.model_copy(update={"spare_worker": False})})
    with tempfile.TemporaryDirectory(prefix="rolecall-check-") as folder:
        home = Home(Path(folder)).create()
        home.models.rmdir()
        home.models.symlink_to(models)
        size = (await anyio.to_thread.run_sync(footprints, home, [spec.model]))[spec.model]
        row: dict[str, Any] = {"model": spec.model, "role": role.value}
        row |= await anyio.to_thread.run_sync(planned, models / spec.model, size)
        with anyio.fail_after(PATIENCE_S):
            row |= await lived(home, settings, role)
    rates = f"{row['prefill_tokens_per_s']:.0f} tokens/s prefill, {row['decode_tokens_per_s']['1']:.1f} decode"
    say(f"  off the plan by {row['error_percent']} %; {row['load_s']:.1f} s to load, {rates}")
    return row


def planned(folder: Path, size: Footprint) -> dict[str, Any]:
    """The plan's weights and KV bytes beside what mlx-lm takes for the same."""
    chunk = prefill_step_tokens(METAL)
    tokens = PROBE_TOKENS[METAL]
    measured = python(PROBE, str(folder), str(tokens), str(chunk))
    plan = {"weights_bytes": size.weights_bytes, "kv_bytes": kv_bytes(size.kv, tokens, chunk)}
    return {
        "tokens": tokens,
        "planned": plan,
        "measured": measured,
        "error_percent": {name: round(100 * (plan[name] / measured[name] - 1), 3) for name in plan},
    }


async def lived(home: Home, settings: Settings, role: Role) -> dict[str, Any]:
    spec = settings.profile.roles[role]
    prompt_words = min(PROMPT_TOKENS[METAL], spec.context_length - 2 * DECODE_TOKENS - 64)
    available = psutil.virtual_memory().available
    async with ModelManager(home, settings, start_process) as manager:
        began = time.monotonic()
        reserved = (await manager.load(role.value)).reserved_bytes
        load_s = time.monotonic() - began
        result = await manager.generate(role, asked(filler("1", prompt_words), 1))
        clock = Clock()
        await manager.generate(role, asked(STORY, DECODE_TOKENS), clock.on_event)
        row: dict[str, Any] = {
            "load_s": round(load_s, 2),
            "prefill_tokens_per_s": round((result.prompt_tokens - result.cached_tokens) / result.prefill_s, 1),
            "decode_tokens_per_s": {"1": round(1 / clock.per_token_s, 2), "2": await two_at_once(manager, role)},
            "cancel_s": {
                "prefill": await cancelled(manager, role, filler("2", prompt_words), Prefilling),
                "decode": await cancelled(manager, role, "3 " + STORY, Generated),
            },
        }
        (line,) = manager.resident()
        row |= {"reserved_bytes": reserved, "measured_bytes": line.measured_bytes}
        held = psutil.virtual_memory().available
        process = psutil.Process(line.pid)
        began = time.monotonic()
        await manager.unload(role.value)
        row["unload_s"] = round(time.monotonic() - began, 2)
        with anyio.move_on_after(MEMORY_BACK_S):
            while psutil.virtual_memory().available < held + line.measured_bytes // 2:
                await anyio.sleep(0.05)
        row["available_bytes"] = {"before": available, "loaded": held, "after": psutil.virtual_memory().available}
        row["process_gone"] = not process.is_running()
    return row


def asked(text: str, max_tokens: int) -> GenerationRequest:
    return GenerationRequest(messages=(Message(role="user", content=text),), max_tokens=max_tokens)


async def two_at_once(manager: ModelManager, role: Role) -> float:
    """Tokens per second of two requests together, from the later first token to the earlier last one."""
    clocks = [Clock(), Clock()]
    async with anyio.create_task_group() as group:
        for number, clock in enumerate(clocks):
            group.start_soon(manager.generate, role, asked(f"{number + 5} {STORY}", DECODE_TOKENS), clock.on_event)
    starts = [clock.start - clocks[0].start for clock in clocks]
    times = [[start + at for at, _ in clock.tokens] for start, clock in zip(starts, clocks, strict=True)]
    first, last = max(each[0] for each in times), min(each[-1] for each in times)
    both = sum(first < at <= last for each in times for at in each)
    return round(both / (last - first), 2) if last > first else 0.0


async def cancelled(manager: ModelManager, role: Role, text: str, kind: type) -> float:
    """Seconds from the cancel, at the first event of a kind, until the worker has let go of the request."""
    there = anyio.Event()

    def on_event(event: Event) -> None:
        if isinstance(event, kind):
            there.set()

    async with anyio.create_task_group() as group:
        group.start_soon(manager.generate, role, asked(text, DECODE_TOKENS), on_event)
        await there.wait()
        began = time.monotonic()
        group.cancel_scope.cancel()
    return round(time.monotonic() - began, 3)


def live_tests() -> dict[str, Any]:
    """The live tests on this device, by name; their figures are not kept."""
    say("\nThe live tests (minutes)")
    with tempfile.TemporaryDirectory(prefix="rolecall-check-") as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "tests/live", "-m", "not soak", "-q", f"--junit-xml={file}"]
        began = time.monotonic()
        done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
        if not file.exists():
            return {"passed": 0, "failed": [f"pytest ended with status {done.returncode}"]}
        cases = list(ElementTree.parse(file).iter("testcase"))
    failed = [
        case.get("name", "") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    return {"passed": len(cases) - len(failed), "failed": failed, "seconds": round(time.monotonic() - began)}


def problems(report: dict[str, Any]) -> list[str]:
    """In words what is not as it should be; tokens per second are not judged."""
    found = []
    for row in report["models"]:
        model = row["model"]
        found += [
            f"{model}: {name} is {error} % off the plan"
            for name, error in row["error_percent"].items()
            if abs(error) > 1
        ]
        if row["measured_bytes"] > row["reserved_bytes"]:
            found.append(f"{model}: {row['measured_bytes']} bytes measured, {row['reserved_bytes']} reserved")
        found += [f"{model}: cancelling in {at} took {s} s" for at, s in row["cancel_s"].items() if s >= 1]
        if not row["process_gone"]:
            found.append(f"{model}: its process is still there after the unload")
    limit = report["wired_limit"]
    if not limit["unchanged"] or limit["of_a_worker_bytes"]:
        found.append(f"the limit of wired memory was changed: {limit}")
    if report["live_tests"] and report["live_tests"]["failed"]:
        found.append(f"live tests failed: {', '.join(report['live_tests']['failed'])}")
    if report["processes_left"]:
        found.append(f"{report['processes_left']} worker processes are left")
    return found


def assert_shareable(text: str) -> None:
    user = Path.home().name
    leaks = [word for word in (str(Path.home()), platform.node(), str(models_folder())) if word and word in text]
    if len(user) > 3 and re.search(rf"\b{re.escape(user)}\b", text):
        leaks.append("the user's name")
    if leaks:
        raise SystemExit("The report would name this user or machine, so it was not written.")


def summary(report: dict[str, Any]) -> None:
    rows = [("model", "weights GB", "KV err %", "held/reserved GB", "load s", "prefill/s", "decode/s 1, 2", "cancel s")]
    for row in report["models"]:
        decode, cancel = row["decode_tokens_per_s"], row["cancel_s"]
        rows.append((
            row["model"], f"{row['measured']['weights_bytes'] / 1e9:.2f}", f"{row['error_percent']['kv_bytes']:.2f}",
            f"{row['measured_bytes'] / 1e9:.2f}/{row['reserved_bytes'] / 1e9:.2f}", f"{row['load_s']:.1f}",
            f"{row['prefill_tokens_per_s']:.0f}", f"{decode['1']:.1f}, {decode['2']:.1f}",
            f"{cancel['prefill']:.2f}, {cancel['decode']:.2f}",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    say("")
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    limit, tests = report["wired_limit"], report["live_tests"]
    say(f"metal: {report['metal']}; wired limit {limit['before_mb']} before, {limit['after_mb']} after")
    if tests:
        say(f"live tests: {tests['passed']} passed, {len(tests['failed'])} failed")
    for problem in report["problems"]:
        say(f"PROBLEM: {problem}")


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
