"""Errors of requests, tools, host and shim.

ServerError
├── BadRequest         bad_request        an argument, a line of a batch or a control request is wrong
├── HostUnavailable    host_unavailable   no host can be reached or started
├── HostDied           host_died          the host ended while a request was open
├── HostMismatch       host_mismatch      the running host has other settings or a newer version
├── DeadlineExceeded   deadline_exceeded  the call's own `budget_s` ran out
├── StoreNewer         store_newer        a newer Rolecall wrote this file
└── StoreUnusable      store_unusable     receipts cannot be read or written
"""

from __future__ import annotations

from rolecall.config.errors import RolecallError


class ServerError(RolecallError):
    code = "server_error"


class BadRequest(ServerError):
    code = "bad_request"


class HostUnavailable(ServerError):
    code = "host_unavailable"


class HostDied(ServerError):
    code = "host_died"


class HostMismatch(ServerError):
    code = "host_mismatch"


class DeadlineExceeded(ServerError):
    code = "deadline_exceeded"


class StoreNewer(ServerError):
    code = "store_newer"


class StoreUnusable(ServerError):
    code = "store_unusable"
