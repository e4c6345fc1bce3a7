"""Errors of models, memory and workers: under each code, what it means."""

from __future__ import annotations

from collections.abc import Mapping

from rolecall.config.errors import RolecallError


class RoleError(RolecallError):
    code = "role_error"


class ModelMissing(RoleError):
    code = "model_missing"  # not on disk; the message holds the pull command


class ModelUnknown(RoleError):
    code = "model_unknown"  # no such id, role or repository


class ModelCorrupt(RoleError):
    code = "model_corrupt"  # hash, header or shard wrong


class ModelRefused(RoleError):
    code = "model_refused"  # remote code or pickled weights


class DoesNotFit(RoleError):
    code = "does_not_fit"  # cannot be held within the memory budget


class PromptTooLong(RoleError):
    code = "prompt_too_long"  # prompt and answer exceed the context


class SchemaRefused(RoleError):
    code = "schema_refused"  # a JSON Schema or regex that cannot be, or was not, kept to


class QueueFull(RoleError):
    code = "queue_full"  # try again later


class WorkerDied(RoleError):
    code = "worker_died"  # the process ended; the next call starts another


class WorkerTimeout(RoleError):
    code = "worker_timeout"  # no first token, or no finished load, in time


class EndpointUnavailable(RoleError):
    code = "endpoint_unavailable"  # a server of models cannot be reached


class DownloadFailed(RoleError):
    code = "download_failed"  # network, disk space or hash during a pull


def from_dict(fields: Mapping[str, str], otherwise: type[RoleError] = RoleError) -> RoleError:
    """The error whose `to_dict` another process sent; of another code than these it becomes `otherwise`."""
    more = dict(fields)
    code = more.pop("code")
    return next((kind for kind in RoleError.__subclasses__() if kind.code == code), otherwise)(**more)
