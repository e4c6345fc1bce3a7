"""Errors of requests, tools, host and shim: under each code, what it means."""

from __future__ import annotations

from rolecall.config.errors import RolecallError


class ServerError(RolecallError):
    code = "server_error"


class BadRequest(ServerError):
    code = "bad_request"  # an argument, a line of a batch or a control request is wrong


class ResourceUnknown(BadRequest):
    code = "resource_unknown"  # no such resource, or not this session's


class ClientUnusable(ServerError):
    code = "client_unusable"  # a client's configuration cannot be read or edited


class HostUnavailable(ServerError):
    code = "host_unavailable"  # no host can be reached or started


class HostDied(ServerError):
    code = "host_died"  # the host ended while a request was open


class HostMismatch(ServerError):
    code = "host_mismatch"  # the running host has other settings or a newer version


class PolicyDenied(ServerError):
    code = "policy_denied"  # one of the user's routing rules refuses the request


class DeadlineExceeded(ServerError):
    code = "deadline_exceeded"  # the call's own `budget_s` ran out


class Cancelled(ServerError):
    code = "cancelled"  # the client, or the host's end, stopped the call


class JobUnknown(ServerError):
    code = "job_unknown"  # no job or kept result has this id (any more)


class JobLost(ServerError):
    code = "job_lost"  # the host ended before the job did


class TooManyRequests(ServerError):
    code = "too_many_requests"  # a client has too many requests open


class Unauthorized(ServerError):
    code = "unauthorized"  # an HTTP request bears no token, or a wrong one


class StoreNewer(ServerError):
    code = "store_newer"  # a newer Rolecall wrote this file


class StoreUnusable(ServerError):
    code = "store_unusable"  # receipts cannot be read or written


def told(what: str, error: Exception) -> RolecallError:
    """The error as whoever asked may know it: of one that is not typed only the kind, while the log has the rest."""
    if isinstance(error, RolecallError):
        return error
    import structlog  # no part of the standard library, with which the shim does

    structlog.get_logger().error("request_failed", what=what, exc_info=True)
    advice = "Try again; `rolecall logs` has the details."
    return RolecallError(f"{what} failed inside the host ({type(error).__name__}).", advice=advice)
