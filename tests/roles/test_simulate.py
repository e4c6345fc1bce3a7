"""The simulator: its clock, what simulated workers share, and the report."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from rolecall.config.settings import load_profile
from rolecall.roles.errors import WorkerDied, WorkerTimeout
from rolecall.roles.lease import PrefillLease
from rolecall.roles.worker.wire import WorkerSpec
from tests.simulate.clock import Stuck, on_a_clock, run_virtual
from tests.simulate.device import Device, SimulatedMachine
from tests.simulate.rates import PREFILL_FLOPS, DeviceRates, ModelRates, m4_max
from tests.simulate.run import POLICIES, Run, simulate, summarise
from tests.simulate.worker import Call, SimulatedWorker
from tests.simulate.workload import Session, draw_day

PROFILE = load_profile("mac-128")
RATES = m4_max(PROFILE)
MODEL = ModelRates(
    prefill_tokens_per_s=1000,
    decode_tokens_per_s={1: 10, 2: 16},
    load_s=2.0,
    weights_bytes=1e9,
    kv_bytes_per_token=100_000,
)
DEVICE = DeviceRates(models={"m": MODEL}, request_overhead_s=0.0, decode_share_beside_prefill=0.1)


def call(prompt_tokens: int = 1000, completion_tokens: int = 20, **more: Any) -> Call:
    return Call(0.0, "a", "reasoning", prompt_tokens, completion_tokens, 1000, **more)


async def loaded(count: int = 1, lease: PrefillLease | None = None) -> list[SimulatedWorker]:
    device, machine = Device(DEVICE), SimulatedMachine(64 * 10**9, lambda now_s: 0.0)
    workers = [SimulatedWorker(device, machine, pid, lease) for pid in range(1, count + 1)]
    for worker in workers:
        spec = WorkerSpec("text", Path("m"), "m", 8192, 2, 0, kv_bytes=10**9, leased=lease is not None)
        await worker.load(spec)
    return workers


async def seconds(*work: Awaitable[Any]) -> list[float]:
    """When each of what runs at once was done."""
    began, done = anyio.current_time(), [math.nan] * len(work)

    async def one(number: int, each: Awaitable[Any]) -> None:
        await each
        done[number] = round(anyio.current_time() - began, 2)

    async with anyio.create_task_group() as group:
        for number, each in enumerate(work):
            group.start_soon(one, number, each)
    return done


def serve(worker: SimulatedWorker, what: Call, timeout_s: float = math.inf) -> Awaitable[Any]:
    return worker.serve(what, timeout_s, lambda: None)


def virtually(main: Callable[[], Awaitable[Any]]) -> Any:
    return run_virtual(main, limit_s=1e6)


def test_a_day_of_virtual_time_needs_no_real_time_and_a_task_that_waits_or_spins_for_ever_is_told() -> None:
    async def sleep_a_day() -> float:
        await anyio.sleep(86400)
        return anyio.current_time()

    async def spin() -> None:
        while True:
            await anyio.lowlevel.checkpoint()

    assert virtually(sleep_a_day) == 86400
    with pytest.raises(Stuck, match="every task waits"):
        run_virtual(anyio.Event().wait, limit_s=math.inf)
    with pytest.raises(Stuck, match="tasks spin"):
        virtually(spin)
    with pytest.raises(TimeoutError):
        run_virtual(anyio.sleep, 11, limit_s=10)


def test_a_call_alone_takes_its_prefill_and_its_decode() -> None:
    async def main() -> list[float]:
        [worker] = await loaded()
        return await seconds(serve(worker, call(1000, 20)))

    assert virtually(main) == [3.0]  # 1,000 tokens at 1,000/s, then 20 at 10/s


def test_requests_of_one_worker_batch_and_two_workers_share_the_device_evenly() -> None:
    async def one_worker() -> list[float]:
        [worker] = await loaded()
        return await seconds(serve(worker, call(1, 80)), serve(worker, call(1, 80)))

    async def two_workers() -> list[float]:
        first, second = await loaded(2)
        return await seconds(serve(first, call(1, 80)), serve(second, call(1, 80)))

    assert virtually(one_worker) == pytest.approx([10.0, 10.0], abs=0.2)  # at 16/s together
    assert virtually(two_workers) == pytest.approx([16.0, 16.0], abs=0.2)  # at 5/s each


def test_decode_beside_another_workers_prefill_keeps_its_share_and_with_the_lease_one_prefills_at_a_time() -> None:
    async def beside() -> list[float]:
        first, second = await loaded(2)
        return await seconds(serve(first, call(1, 10)), serve(second, call(9000, 1)))

    async def leased() -> list[float]:
        first, second = await loaded(2, PrefillLease())
        second.comes_first = True
        return await seconds(serve(first, call(10_000, 1)), serve(second, call(1000, 1)))

    decoded_s, prefilled_s = virtually(beside)
    assert prefilled_s == pytest.approx(10.0, abs=0.2)  # 9,000 tokens at 0.9 of the device
    assert decoded_s == pytest.approx(10.0, abs=0.2)  # 10 tokens at a tenth of 10/s
    long_s, short_s = virtually(leased)
    assert short_s < 2.5 and long_s > 11  # after the chunk that runs


def test_the_second_question_to_a_document_prefills_only_itself_and_other_documents_nothing_of_it() -> None:
    async def main() -> list[int]:
        [worker] = await loaded()
        about: dict[str, Any] = {"document": "d", "document_tokens": 900}
        cached = []
        for what in (call(**about), call(**about), call(document="e", document_tokens=900), call()):
            cached.append((await worker.serve(what, math.inf, lambda: None)).cached_tokens)
        return cached

    assert virtually(main) == [0, 900, 0, 0]


@on_a_clock
async def test_kept_prompts_give_way_so_that_the_worker_never_holds_more_kv_than_it_may() -> None:
    [worker] = await loaded()
    for number in range(30):
        await serve(worker, call(3000, document=f"d{number}", document_tokens=10))
        assert worker.measured_bytes <= 1e9 + 0.3e9 + 1e9  # weights, process, kv_bytes


@on_a_clock
async def test_a_role_s_time_cuts_the_answer_off_and_a_prompt_that_takes_all_of_it_is_an_error() -> None:
    [worker] = await loaded()
    made = await worker.serve(call(1000, 100), 3.0, lambda: None)
    assert (made.finish, made.completion_tokens) == ("timeout", 20)
    with pytest.raises(WorkerTimeout, match="5000 tokens of prompt"):
        await serve(worker, call(5000, 100), 3.0)
    assert (await worker.serve(call(1, 1000), math.inf, lambda: None)).finish == "length"


@on_a_clock
async def test_a_killed_worker_fails_its_calls_at_once_and_gives_its_memory_and_the_lease_back() -> None:
    dying, other = await loaded(2, PrefillLease())
    failed_at: list[float] = []

    async def fails() -> None:
        with pytest.raises(WorkerDied):
            await serve(dying, call(50_000, 1))
        failed_at.append(anyio.current_time())

    async with anyio.create_task_group() as group:
        group.start_soon(fails)
        await anyio.sleep(1.2)
        killed_at = anyio.current_time()
        dying.die()
    assert failed_at == [killed_at] and dying.measured_bytes == 0
    assert await seconds(serve(other, call(1000, 20))) == [3.0]
    with pytest.raises(WorkerDied):
        await serve(dying, call())


def test_the_reported_rates_hold_at_the_context_they_were_reported_at_and_a_14b_is_bound_by_bandwidth() -> None:
    router = RATES.models[PROFILE.roles["router"].model]
    assert 2048 / router.prefill_s(2048, 0) == pytest.approx(1607, rel=0.01)
    assert 1 / router.step_s(1, 2048) == pytest.approx(87, rel=0.01)
    for rates in RATES.models.values():
        if (
            rates.weights_bytes > 10e9
            and rates.weights_bytes != RATES.models[PROFILE.roles["coding"].model].weights_bytes
        ):
            assert 1 / rates.step_s(1, 0) <= 546e9 / rates.weights_bytes  # dense: all of it is read for each token


def test_a_decode_step_lies_on_the_line_between_the_batches_measured_next_to_it() -> None:
    steps = {1: 0.05, 2: 0.1, 4: 0.12}
    rates = RATES.models[PROFILE.roles["router"].model].model_copy(
        update={"decode_tokens_per_s": {n: n / s for n, s in steps.items()}, "decode_half_context": None}
    )
    found = [rates.step_s(batch, 0) for batch in (1, 2, 3, 4, 6)]
    assert found == pytest.approx([0.05, 0.1, 0.11, 0.12, 0.14])


def ran(policy: str, *sessions: Session) -> Run:
    return simulate(PROFILE, RATES, sessions, POLICIES[policy], lambda now_s: 10e9)


def at(at_s: float, role: str) -> Session:
    return Session((Call(at_s, "a", role, 500, 50, 500, kind=role),), (0.0,))


def test_ours_has_the_router_there_from_the_start_and_keep_alive_lets_a_model_go_after_five_minutes() -> None:
    calls = at(60, "router"), at(100, "coding"), at(300, "coding"), at(800, "coding")
    cold = {policy: [outcome.cold for outcome in ran(policy, *calls).outcomes] for policy in POLICIES}
    assert cold["ours"] == [False, True, False, False]
    assert cold["lru"] == [True, True, False, False]
    assert cold["keep-alive"] == [True, True, False, True]


def test_a_channel_has_its_model_loaded_before_the_first_call_that_needs_it() -> None:
    calls = (Call(60.0, "a", "router", 500, 500, 500), Call(60.0, "a", "coding", 500, 50, 500))
    session = Session(calls, (20.0, 0.0), "code")
    assert [outcome.cold for outcome in ran("ours", session).outcomes] == [False, False]
    assert [outcome.cold for outcome in ran("lru", session).outcomes] == [True, True]


def test_a_call_on_the_idle_machine_takes_what_alone_says() -> None:
    run = ran("ours", at(60, "reasoning"), at(120, "reasoning"))
    assert run.outcomes[1].latency_s == pytest.approx(run.alone_s(run.outcomes[1].call), rel=0.02)


def test_the_day_is_drawn_from_its_seed_and_keeps_every_role_s_limits() -> None:
    day = draw_day(PROFILE, 1, 24)
    assert day == draw_day(PROFILE, 1, 24) != draw_day(PROFILE, 2, 24)
    calls = [each for session in day for each in session.calls]
    assert {each.client for each in calls} == {"editor", "desktop", "batch"}
    for each in calls:
        if spec := PROFILE.roles.get(each.role):
            assert 0 < each.completion_tokens <= each.max_tokens == spec.max_tokens
            assert each.document_tokens <= each.prompt_tokens <= spec.context_length - spec.max_tokens
    assert any(each.document_tokens for each in calls)


def test_the_summary_says_which_targets_are_met_missed_or_impossible() -> None:
    slow = Session((Call(60.0, "a", "reasoning", 500, 700, 1800, kind="reasoning"),), (0.0,))
    report = summarise(ran("ours", slow, at(30, "router")))
    assert report["by_class"]["reasoning"]["targets"] == {"p50": "impossible", "p95": "impossible", "p99": "impossible"}
    assert report["by_class"]["router"]["targets"] == {"p50": "met", "p95": "met", "p99": "met"}
    assert report["cold_starts"] == 1 and report["most_models"] == 2
    assert 0 < report["mean_gb"]["measured"] < report["mean_gb"]["reserved"] < report["peak_gb"]["reserved"] <= 96


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tests.simulate", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120)


def test_the_command_writes_the_same_report_twice_says_simulation_and_draws_the_memory(tmp_path: Path) -> None:
    first = command("--hours", 9, "--policy", "ours", "--out", tmp_path)
    second = command("--hours", 9, "--policy", "ours")
    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout and first.stdout.startswith("SIMULATION, not a measurement")
    assert json.loads((tmp_path / "report.json").read_text())["simulation"] is True
    assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


def test_a_trace_runs_on_measured_rates(tmp_path: Path) -> None:
    starter = "starter/smollm2-135m-instruct-fp32"
    model = {"prefill_tokens_per_s": 480, "decode_tokens_per_s": {"1": 31, "2": 35}, "load_s": 2.0}
    model |= {"weights_bytes": 538e6, "kv_bytes_per_token": 46080}
    rates, trace = tmp_path / "rates.json", tmp_path / "trace.jsonl"
    rates.write_text(json.dumps({"device": "two cores", "machine_bytes": 16e9, "models": {starter: model}}))
    line = {"client": "a", "role": "reasoning", "prompt_tokens": 480, "completion_tokens": 31, "max_tokens": 31}
    trace.write_text("\n".join(json.dumps({"at_s": at_s, **line}) for at_s in (10.0, 30.0)))
    done = command("--profile", "starter", "--rates", rates, "--trace", trace, "--policy", "ours", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["device"] == "two cores" and report["without_model"] == 0
    assert report["policies"]["ours"]["latency_s"]["p95"] == pytest.approx(2.01, abs=0.02)
    assert report["policies"]["ours"]["by_class"]["reasoning"]["requests"] == 2


def test_attention_s_part_of_a_prefill_counts_the_layers_that_have_it() -> None:
    hybrid = m4_max(load_profile("mac-128-2026")).models["mlx-community/Qwen3.6-35B-A3B-8bit"]
    attention_flops = 4 * 10 * 16 * 256  # 10 of its 40 layers, 16 heads of 256
    assert hybrid.prefill_half_context == pytest.approx(PREFILL_FLOPS / 1518 / attention_flops)
