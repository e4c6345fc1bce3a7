"""`rolecall batch`: one tool over many files, one JSON line a file, resumable where it was interrupted."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

import anyio
import typer
import yaml
from pydantic import BaseModel, Field, ValidationError

from rolecall.config.errors import RolecallError
from rolecall.config.home import Home
from rolecall.config.models import load_yaml
from rolecall.config.profile import Strict
from rolecall.retrieval.tasks import together

from ..errors import BadRequest, HostDied
from ..orchestration.contract import ReasonCall, SummarizeCall, ValidateCall
from .output import EXIT_ATTENTION, Bar, Shell, Tell, note

_ARGUMENTS: dict[str, type[BaseModel]] = {"summarize": SummarizeCall, "reason": ReasonCall, "validate": ValidateCall}
_OURS = {"paths", "save_to", "each"}
"""No arguments of a job's: every file is a call of its own, and its result a line."""
_UNLIKE = {"receipt_id", "job_id"}
"""What differs from run to run: lines are the same bytes however often a batch was interrupted."""

Work = Callable[[str], Awaitable[dict[str, Any]]]
"""A file's path to the tool's result, or to `{"status": "failed", "error"}`; an error that it raises ends the batch."""


class Job(Strict):
    """A job's file. Relative `paths` and `out` count from its folder."""

    tool: Literal["summarize", "reason", "validate"]
    paths: list[str] = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)
    out: str | None = None
    concurrency: int = Field(default=1, ge=1, le=16)


def batch(
    shell: Shell,
    job_file: Path = typer.Argument(metavar="JOB", help="YAML with tool, paths, arguments, out, concurrency."),
    out: Path | None = typer.Option(None, "--out", help="JSON lines; by default the job's `out`, or JOB.jsonl."),
    retry: bool = typer.Option(False, "--retry", help="Do files again that failed before."),
) -> None:
    """Run a tool over many files: one JSON line each. Run it again to go on where it was interrupted."""
    job, folder = _read_job(job_file), job_file.absolute().parent
    target = out or folder / (job.out or f"{job_file.stem}.jsonl")
    found = shell.ask("files", paths=[str(folder / Path(path).expanduser()) for path in job.paths])
    files = [file for file in found if Path(file) != target.resolve()]
    job_id = hashlib.sha256(json.dumps([job.tool, job.arguments], sort_keys=True).encode()).hexdigest()
    with open_lines(target, job_id[:12]) as lines, Bar(job.tool) as bar:
        changed = lines.forget(files, retry)
        left = [file for file in files if file not in lines.kept]
        anyio.run(run_batch, left, lines, _through_host(job, shell), job.concurrency, bar.tell)
        failed = lines.finish()
    counts = {"files": len(files), "done": len(left), "before": len(files) - len(left), "changed": changed}
    shell.show({"out": str(target), **counts, "failed": failed})
    if failed:
        note("With --retry the failed files are done again.")
        raise typer.Exit(EXIT_ATTENTION)


class Lines:
    """The output's lines by path, for the one process that writes them.

    While a batch runs, a finished file's line is at the end of the output and on the disk; `finish` sorts them. So the
    output alone says what is done, wherever a batch was killed.
    """

    def __init__(self, path: Path, file: IO[bytes], job: str) -> None:
        self._path, self._file, self._job = path, file, job
        self.kept: dict[str, dict[str, Any]] = {}
        file.seek(0)
        *whole, torn = file.read().split(b"\n")
        for number, line in enumerate(whole, 1):
            try:
                entry = json.loads(line)
                ours = entry["job"] == job and {"path", "sha256"} < entry.keys()
            except (ValueError, TypeError, KeyError):
                ours = False
            if not ours:
                raise _foreign(path, f"line {number}")
            self.kept[entry["path"]] = entry
        if torn[:9] != b'{"path":"'[: len(torn)]:
            raise _foreign(path, "its end")
        file.truncate(sum(len(line) + 1 for line in whole))

    def forget(self, files: Sequence[str], failed: bool) -> int:
        """Drop the lines of files that hold other bytes now (returns how many), and with `failed` of those that did."""
        changed = {file for file in files if file in self.kept and self.kept[file]["sha256"] != _sha256(file)}
        for file in changed | {file for file in files if failed and "error" in self.kept.get(file, ())}:
            del self.kept[file]
        return len(changed)

    def add(self, path: str, sha256: str, result: dict[str, Any]) -> None:
        """Keep a file's result: on the disk when this returns."""
        self.kept[path] = {"path": path, "sha256": sha256, "job": self._job, **result}
        _write(self._file, _encoded(self.kept[path]))

    def finish(self) -> int:
        """Put the lines into the order of their paths; returns how many are of failed files."""
        ordered = [self.kept[path] for path in sorted(self.kept, key=Path)]
        new = self._path.with_name(f".{self._path.name}.new")
        with new.open("wb") as file:
            _write(file, b"".join(map(_encoded, ordered)))
        new.replace(self._path)
        return sum("error" in line for line in ordered)


@contextmanager
def open_lines(path: Path, job: str) -> Iterator[Lines]:
    """The output, which is made where it is missing. Raises BadRequest: another batch writes it, or it holds anything
    but lines of this job."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy, advice = "Another batch writes this output.", "Wait until it has ended, or name another --out."
            raise BadRequest(busy, found=str(path), advice=advice) from None
        yield Lines(path, file, job)


async def run_batch(files: Sequence[str], lines: Lines, work: Work, concurrency: int, tell: Tell) -> None:
    """Add the line of every file, `concurrency` at a time."""
    left, already = iter(files), len(lines.kept)

    async def runner() -> None:
        for file in left:
            done = len(lines.kept)
            tell({"done": done, "total": already + len(files), "words": f"{done}: {Path(file).name}"})
            sha256 = _sha256(file)  # of before the call: a change during it is found by the next run
            result = await work(file)
            lines.add(file, sha256, {key: value for key, value in result.items() if key not in _UNLIKE})

    async with together() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(runner)


def _through_host(job: Job, shell: Shell) -> Work:
    from ..host.control import ControlClient

    async def work(file: str, hosts: int = 2) -> dict[str, Any]:
        async with ControlClient.open(Home.find(), shell.config) as client:  # what this raises is no file's fault
            try:
                request = {"name": job.tool, "arguments": {**job.arguments, "paths": [file]}}
                return dict(await client.call("tool", request))
            except RolecallError as error:
                if not isinstance(error, HostDied) or hosts == 1:  # a file that ends two hosts has failed
                    return {"status": "failed", "error": error.to_dict()}
        return await work(file, hosts - 1)

    return work


def _read_job(path: Path) -> Job:
    shape: type[BaseModel] = Job
    try:
        plain = json.dumps(load_yaml(path.read_text("utf-8")), default=str)  # a date is its text, as in JSON
        job = Job.model_validate_json(plain)
        shape = _ARGUMENTS[job.tool]
        shape.model_validate({**job.arguments, "paths": ["file"]})
        if refused := ", ".join(sorted(_OURS & job.arguments.keys())):
            raise ValueError(f"arguments: {refused}; every file is a call of its own, and its result a line")
        return job
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg'].removeprefix('Value error, ')}"
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        found = " ".join(str(error).split())[:300]
    known = (name for name in shape.model_json_schema()["properties"] if shape is Job or name not in _OURS)
    raise BadRequest(f"The job in {path} is not valid.", found=found, allowed=", ".join(known), advice="Mend the YAML.")


def _foreign(path: Path, where: str) -> BadRequest:
    failed, allowed = f"The output {path} is not this job's.", "lines of the same tool with the same arguments"
    advice = "Name another --out, or move the file away to start over."
    return BadRequest(failed, found=f"something else in {where}", allowed=allowed, advice=advice)


def _write(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _encoded(line: dict[str, Any]) -> bytes:
    return json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace") + b"\n"


def _sha256(file: str) -> str:
    """Of the file's bytes; "" where it cannot be read, which the host then says."""
    with suppress(OSError), Path(file).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
    return ""
