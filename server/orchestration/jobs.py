"""Calls that may outlast the request that made them, and results that outlast the host.

Every call runs in the host's task group. Whoever waits for it cancels it by going away, until the client's deadline has
passed: from then on it is a job, and only its id, a secret of 128 bits of which the SHA-256 is kept, leads to it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import anyio
import structlog
from anyio.abc import TaskGroup
from pydantic import TypeAdapter

from rolecall.config.errors import RemoteError, RolecallError

from ..errors import Cancelled, JobLost, JobUnknown, ServerError, told
from ..telemetry.store import ReceiptStore
from .contract import Call, OnProgress, Outcome

RunCall = Callable[[Call, OnProgress], Awaitable[Outcome]]

MAX_RESULTS = 200
KEPT_S = 7 * 86_400.0
UNWANTED_S = 86_400.0
"""How long a result stays where the user wants no content kept: long enough to be fetched."""

_BEGIN = "INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?, ?, ?)"
_END = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?)"
_EXPIRE = "DELETE FROM results WHERE at < ?"
_PRUNE = "DELETE FROM results WHERE id IN (SELECT id FROM results ORDER BY at DESC LIMIT -1 OFFSET ?)"
_FIND = "SELECT tool, state, seconds, body FROM results WHERE id = ? AND at >= ?"

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class Job:
    """A call, at work or ended: `outcome` where it finished, `error` where it failed or was cancelled.

    `words` say what it does, or how it ended; `seconds` what it took. `key` is set once it is a job.
    """

    tool: str
    key: str = ""
    words: str = "working"
    fraction: float | None = None
    seconds: float = 0.0
    outcome: Outcome | None = None
    error: RolecallError | None = None
    listeners: set[OnProgress] = field(default_factory=set)
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    done: anyio.Event = field(default_factory=anyio.Event)
    started: float = field(default_factory=time.monotonic)

    @property
    def state(self) -> Literal["running", "finished", "failed", "cancelled"]:
        if self.error is not None:
            return "cancelled" if self.error.code == Cancelled.code else "failed"
        return "finished" if self.outcome is not None else "running"

    def tell(self, words: str, fraction: float | None) -> None:
        self.words, self.fraction = words, self.fraction if fraction is None else fraction
        for listener in tuple(self.listeners):
            listener(words, fraction)

    async def settled(self, tell: OnProgress, within_s: float) -> bool:
        """Whether it has ended, after waiting for at most `within_s` seconds; `tell` hears of it meanwhile."""
        self.listeners.add(tell)
        try:
            with anyio.move_on_after(within_s):
                await self.done.wait()
        finally:
            self.listeners.discard(tell)
        return self.done.is_set()


class Jobs:
    """The calls of one host. `tasks` is its task group: at its end what still runs is cancelled, and recorded so.

    Results are kept in `store`: the latest 200, for 7 days, or for one where `keep_content` is off.
    """

    def __init__(self, run: RunCall, store: ReceiptStore, tasks: TaskGroup, keep_content: bool = True) -> None:
        self._run, self._store, self._tasks = run, store, tasks
        self._kept_s = KEPT_S if keep_content else UNWANTED_S
        self._jobs: dict[str, Job] = {}

    @property
    def busy(self) -> bool:
        return any(not job.done.is_set() for job in self._jobs.values())

    async def drained(self) -> None:
        """Return once no job runs."""
        while running := [job for job in self._jobs.values() if not job.done.is_set()]:
            await running[0].done.wait()

    async def run(self, call: Call, tell: OnProgress, deadline_s: float) -> Outcome:
        """The call's outcome; after `deadline_s` a partial one with the id of the job that the call goes on as. Raises
        as the call itself. Cancelling the awaiting task stops the call, unless it has become a job."""
        job = Job(call.tool)
        self._tasks.start_soon(self._work, job, call)
        try:
            if not await job.settled(tell, deadline_s):
                return await self._go_on(job)
        except anyio.get_cancelled_exc_class():
            job.scope.cancel()
            raise
        if job.error is not None:
            raise job.error
        assert job.outcome is not None
        return job.outcome

    async def status(self, id: str) -> Job:
        """The job of this id. Raises as the receipts' store, and

        JobUnknown: there is none, or its result is no longer kept.
        JobLost: its host ended before it did.
        """
        key = _key(id)
        if (job := self._jobs.get(key)) is not None:
            if job.state == "running":
                job.seconds = time.monotonic() - job.started
            return job
        rows = await self._store.run((_FIND, (key, time.time() - self._kept_s)))
        if not rows:
            failed, kept = "No job or kept result has this id.", f"the latest {MAX_RESULTS} results, for up to 7 days"
            raise JobUnknown(failed, allowed=kept, advice="Give the id as it was handed out, or send the call again.")
        tool, state, seconds, body = rows[0]
        if state == "running":
            raise JobLost("The host ended before this job did.", advice="Send the call again.")
        if state == "finished":
            return Job(tool, key, "finished", seconds=seconds, outcome=_outcomes().validate_json(body))
        error = RemoteError(json.loads(body))
        return Job(tool, key, str(error), seconds=seconds, error=error)

    async def result(self, id: str, tell: OnProgress = lambda *_: None, within_s: float = 0.0) -> Job:
        """The job once it has ended, or after `within_s` seconds; `tell` hears of it meanwhile. Raises as `status`, and
        the job's own error where it failed or was cancelled."""
        if (job := self._jobs.get(_key(id))) is not None:
            tell(job.words, job.fraction)
            await job.settled(tell, within_s)
        job = await self.status(id)
        if job.error is not None:
            raise job.error
        return job

    async def cancel(self, id: str) -> Job:
        """Stop the job and wait for its end; one that has ended stays as it is. Raises as `status`."""
        if (job := self._jobs.get(_key(id))) is not None:
            job.scope.cancel()
            await job.done.wait()
        return await self.status(id)

    async def keep(self, tool: str, outcome: Outcome) -> str | None:
        """Keep a result as if it were a job's, and return its id; None where it cannot be written."""
        id = secrets.token_hex(16)
        return id if await self._write(_END, _key(id), tool, "finished", 0.0, _encoded(outcome)) else None

    async def _work(self, job: Job, call: Call) -> None:
        try:
            with job.scope:
                job.outcome = await self._run(call, job.tell)
        except Exception as error:
            job.error = told(f"The tool {job.tool!r}", error)
        finally:
            if job.outcome is None and job.error is None:
                job.error = Cancelled("The call was cancelled.", advice="Send it again if it is still wanted.")
            job.words = str(job.error or "finished")
            job.seconds = time.monotonic() - job.started
            if job.key:
                with anyio.CancelScope(shield=True):
                    await self._end(job)
            job.done.set()

    async def _go_on(self, job: Job) -> Outcome:
        id = secrets.token_hex(16)
        job.key = _key(id)
        self._jobs[job.key] = job
        await self._write(_BEGIN, job.key, job.tool, "running", 0.0, "")
        answer = (
            f"Not finished within the time a client waits ({job.words}). The work goes on as a job: call `job` "
            f'with id "{id}" and action "result" for the answer.'
        )
        return Outcome(answer=answer, status="partial", receipt_id="", job_id=id)

    async def _end(self, job: Job) -> None:
        """Keep how the job ended; where that cannot be written it is known as long as the host lives."""
        body = _encoded(job.outcome) if job.outcome else json.dumps(job.error.to_dict() if job.error else {})
        if await self._write(_END, job.key, job.tool, job.state, job.seconds, body):
            del self._jobs[job.key]

    async def _write(self, statement: str, key: str, *row: object) -> bool:
        now = time.time()
        try:
            await self._store.run(
                (statement, (key, now, *row)), (_EXPIRE, (now - self._kept_s,)), (_PRUNE, (MAX_RESULTS,))
            )
        except ServerError as error:
            log.warning("result_not_kept", code=error.code)
            return False
        return True


def _key(id: str) -> str:
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()


@cache
def _outcomes() -> TypeAdapter[Outcome]:
    return TypeAdapter(Outcome)


def _encoded(outcome: Outcome) -> str:
    """JSON; half a surrogate pair, which no file can hold, is replaced."""
    data: Any = _outcomes().dump_python(outcome, mode="json")
    return json.dumps(data, ensure_ascii=False).encode("utf-8", "replace").decode()
