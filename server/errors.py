"""Errors of requests, tools, host and shim.

    ServerError
    ├── BadRequest         bad_request        an argument, a line of a batch or a control request is wrong
    ├── HostUnavailable    host_unavailable   no host can be reached or started
    ├── HostDied           host_died          the host ended while a request was open
    └── HostMismatch       host_mismatch      the running host has other settings or a newer version
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
