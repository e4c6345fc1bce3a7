"""Errors of models, memory and workers.

RoleError
├── ModelMissing       model_missing      not on disk; the message holds the pull command
├── ModelUnknown       model_unknown      no such id, role or repository
├── ModelCorrupt       model_corrupt      hash, header or shard wrong
├── ModelRefused       model_refused      remote code or pickled weights
├── DoesNotFit         does_not_fit       cannot be held within the memory budget
├── PromptTooLong      prompt_too_long    prompt and answer exceed the context
├── SchemaRefused      schema_refused     a JSON Schema or regex that cannot be, or was not, kept to
├── QueueFull          queue_full         try again later
├── WorkerDied         worker_died        the process ended; the next call starts another
├── WorkerTimeout      worker_timeout     no first token, or no finished load, in time
├── EndpointUnavailable  endpoint_unavailable  a server of models cannot be reached
└── DownloadFailed     download_failed    network, disk space or hash during a pull
"""

from __future__ import annotations

from rolecall.config.errors import RolecallError


class RoleError(RolecallError):
    code = "role_error"


class ModelMissing(RoleError):
    code = "model_missing"


class ModelUnknown(RoleError):
    code = "model_unknown"


class ModelCorrupt(RoleError):
    code = "model_corrupt"


class ModelRefused(RoleError):
    code = "model_refused"


class DoesNotFit(RoleError):
    code = "does_not_fit"


class PromptTooLong(RoleError):
    code = "prompt_too_long"


class SchemaRefused(RoleError):
    code = "schema_refused"


class QueueFull(RoleError):
    code = "queue_full"


class WorkerDied(RoleError):
    code = "worker_died"


class WorkerTimeout(RoleError):
    code = "worker_timeout"


class EndpointUnavailable(RoleError):
    code = "endpoint_unavailable"


class DownloadFailed(RoleError):
    code = "download_failed"
