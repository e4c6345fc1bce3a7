"""Typed, frozen settings: packaged defaults, then the user's `config.yaml`, then a `--config` file.

An unknown key is an error that names the key, the file and the nearest valid key.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import sys
from collections.abc import Iterable, Mapping
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml
from pydantic import Field, ValidationError, field_validator

from .errors import ConfigError
from .home import Home
from .models import known_repository, load_yaml, packaged
from .policy import RoutingSettings, routing_of
from .profile import Profile, RoleSpec, Strict

GB = 1_000_000_000
GIB = 1 << 30

_Layers = dict[Path, dict[Any, Any]]
"""What each file says, the strongest last."""

AUTO_PROFILES = ("mac-16", "mac-32", "mac-64", "mac-128")
OBJECT_STORES = ("s3", "gs", "az")


class MemorySettings(Strict):
    """`budget_gb` None takes the profile's; the budget never exceeds the machine's memory less `reserve_gb`."""

    budget_gb: float | None = Field(default=None, gt=0)
    reserve_gb: float = Field(ge=0)


class HostSettings(Strict):
    """`idle_exit_s`: the host leaves after so long without sessions or work. `spare_worker` keeps one started worker
    ready, so that the next model loads without waiting for imports. A call that takes longer than `call_deadline_s`
    goes on as a job; None follows the client."""

    idle_exit_s: float = Field(gt=0)
    call_deadline_s: float | None = Field(default=None, gt=0)
    spare_worker: bool
    queue_limit: int = Field(gt=0)


class TelemetrySettings(Strict):
    """`keep_content`: receipts keep the text of requests and answers, cut at `max_content_bytes` each. The oldest
    beyond `max_receipts` are dropped."""

    keep_content: bool
    max_content_bytes: int = Field(gt=0)
    max_receipts: int = Field(gt=0)


class RetrievalSettings(Strict):
    """`chunk_tokens` in tokens of the embedder; larger files than `max_file_mb` are skipped. `uri` puts the index into
    an object store instead of the home; its keys are in ROLECALL_HOME/env or the environment."""

    chunk_tokens: int = Field(gt=0)
    max_file_mb: float = Field(gt=0)
    uri: str | None = None

    @field_validator("uri")
    @classmethod
    def _bucket(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        parts = urlsplit(uri)
        if parts.scheme not in OBJECT_STORES or not parts.netloc or set("@?#") & set(uri):
            raise ValueError("s3://BUCKET/PREFIX, gs://... or az://..., without credentials, query or fragment")
        return uri.rstrip("/")


class EndpointSettings(Strict):
    """An OpenAI-compatible server that roles may name in `engines`.

    `url` ends where `/chat/completions` begins (mostly in `/v1`). `api_key_env` names the environment variable (or line
    of ROLECALL_HOME/env) that holds its key; the key itself stands in no settings file. `timeout_s` is how long the
    server may be silent. At most `concurrency` requests are sent at once. `context_length` (tokens) where the server
    does not say it.
    """

    url: str
    model: str
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=4, gt=0)
    context_length: int | None = Field(default=None, gt=0)

    @field_validator("url")
    @classmethod
    def _plain(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or set("@?#") & set(url):
            raise ValueError("http://HOST:PORT/v1 or https://..., without credentials, query or fragment")
        return url.rstrip("/")

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return host == "localhost" or ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


class _Sections(Strict):
    memory: MemorySettings
    host: HostSettings
    telemetry: TelemetrySettings
    retrieval: RetrievalSettings
    endpoints: dict[str, EndpointSettings]


class _File(_Sections):
    """The shape of `config.yaml`; `routing` has its own checks, by rule."""

    profile: str
    routing: dict[str, Any]
    offline_strict: bool
    roles: dict[str, RoleSpec]


class Settings(_Sections):
    """All settings of one host, with the profile chosen and the user's overrides applied."""

    profile: Profile
    routing: RoutingSettings

    def budget_bytes(self, machine_bytes: int | None = None) -> int:
        """The configured budget (the user's, else the profile's), at most the machine's memory less the reserve.

        On a small machine the reserve is a quarter of its memory, so that something is always left for models.
        """
        configured = int((self.memory.budget_gb or self.profile.budget_gb) * GB)
        machine = machine_bytes if machine_bytes is not None else psutil.virtual_memory().total
        return min(configured, machine - min(int(self.memory.reserve_gb * GB), machine // 4))

    @property
    def fingerprint(self) -> str:
        """SHA-256 over every value, so that two hosts can tell whether they would behave the same."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def profile_names() -> tuple[str, ...]:
    """The packaged profiles, sorted."""
    found = (entry.name for entry in files("rolecall.config").joinpath("profiles").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def load_profile(name: str) -> Profile:
    """A packaged profile by name.

    Raises:
        ConfigError: no such profile.
    """
    if name not in profile_names():
        raise _unknown("profile", profile_names(), (name,))
    return Profile.model_validate({"name": name, **packaged(f"profiles/{name}.yaml")})


def choose_profile(memory_bytes: int, platform: str = sys.platform) -> str:
    """The profile for a machine: `starter` off a Mac or under 16 GB, else the largest that is not above it."""
    if platform != "darwin":
        return "starter"
    fitting = [name for name in AUTO_PROFILES if int(name.removeprefix("mac-")) * GIB <= memory_bytes]
    return fitting[-1] if fitting else "starter"


def load_settings(home: Home, config_path: Path | None = None, profile: str | None = None) -> Settings:
    """Settings for a home; `profile` overrides the files' choice.

    Raises:
        ConfigError: a file that is not YAML, an unknown key, a value of the wrong type, an unknown profile.
    """
    paths = [Path(str(files("rolecall.config").joinpath("defaults.yaml")))]
    if home.settings_file.exists():
        paths.append(home.settings_file)
    if config_path is not None:
        paths.append(config_path)
    layers = {path: _read_yaml(path) for path in paths}
    name = profile or reduce(_merge, layers.values())["profile"]
    chosen = load_profile(choose_profile(psutil.virtual_memory().total) if name == "auto" else name)
    merged = reduce(_merge, layers.values(), {"roles": chosen.model_dump()["roles"]})
    for role in merged["roles"] if isinstance(merged["roles"], dict) else ():
        if role not in chosen.roles:
            raise _unknown("role", chosen.roles, ("roles", role), layers)
    try:
        file = _File.model_validate(merged)
    except ValidationError as error:
        raise _invalid(error, layers) from None
    _check_sections(file, layers)
    for role, spec in file.roles.items():
        if spec.model != chosen.roles[role].model and (repository := known_repository(spec.model)):
            file.roles[role] = spec.model_copy(update={"model": repository})
    sections = {section: getattr(file, section) for section in _Sections.model_fields}
    routing = routing_of(file.routing, chosen.roles, _source(layers, ("routing",)))
    return Settings(profile=chosen.model_copy(update={"roles": file.roles}), routing=routing, **sections)


def load_routing(path: Path, profile: Profile) -> RoutingSettings:
    """A file's `routing:` section, or a file that is one, checked as at start.

    Raises:
        ConfigError: as `load_settings`.
    """
    data = _read_yaml(path)
    return routing_of(data.get("routing", data), profile.roles, str(path))


def _check_sections(file: _File, layers: _Layers) -> None:
    """What one section asks of another."""
    for key, endpoint in file.endpoints.items():
        if file.offline_strict and not endpoint.loopback:
            raise ConfigError(
                f"The endpoint {key!r} is on another machine, and offline_strict keeps all requests on this one.",
                found=f"endpoints.{key}.url: {endpoint.url} in {_source(layers, ('endpoints', key))}",
                allowed="localhost, 127.0.0.1 or [::1]",
                advice="Set `offline_strict: false` if requests and their documents may go there, or remove it.",
            )
    if file.offline_strict and file.retrieval.uri:
        raise ConfigError(
            "The index would be on another machine, and offline_strict keeps all documents on this one.",
            found=f"retrieval.uri: {file.retrieval.uri} in {_source(layers, ('retrieval', 'uri'))}",
            allowed="no retrieval.uri, which keeps the index in the home",
            advice="Set `offline_strict: false` if the index, which holds the documents' text, may go there.",
        )
    engines = ["mlx", *file.endpoints]
    for role, spec in file.roles.items():
        for engine in spec.engines:
            if engine not in engines:
                raise _unknown("engine", engines, ("roles", role, "engines", engine), layers)


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        data = load_yaml(path.read_text("utf-8"))
        if not isinstance(data, dict | None):
            raise yaml.YAMLError(f"a {type(data).__name__} instead of `key: value` lines")
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"The settings file {path} cannot be read.", found=reason, advice="Mend the file or remove it."
        ) from None
    return data or {}


def _merge(base: dict[Any, Any], layer: Mapping[Any, Any]) -> dict[Any, Any]:
    """The base with the layer's values; what is null or empty there stays as it is."""
    out = dict(base)
    for key, value in layer.items():
        if isinstance(out.get(key), dict) and isinstance(value, Mapping):
            out[key] = _merge(out[key], value)
        elif value is not None or key not in out:
            out[key] = value
    return out


def _invalid(error: ValidationError, layers: _Layers) -> ConfigError:
    """The first thing that is wrong, unknown keys before all. What stands at an address is not shown: a key may."""
    first = min(error.errors(), key=lambda wrong: wrong["type"] != "extra_forbidden")
    loc = first["loc"]
    if first["type"] == "extra_forbidden":
        name = str(loc[0]) if len(loc) > 1 else ""
        named = {"": _File, "roles": RoleSpec, "endpoints": EndpointSettings}
        section: Any = named.get(name) or _File.model_fields[name].annotation
        return _unknown("key", section.model_fields, loc, layers)
    return ConfigError(
        f"Invalid value for {'.'.join(map(str, loc))} in {_source(layers, loc)}.",
        found="not shown here" if loc[0] == "endpoints" or loc[-1] == "uri" else repr(first.get("input"))[:100],
        allowed=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        advice="Correct the value.",
    )


def _unknown(what: str, names: Iterable[str], loc: tuple[str | int, ...], layers: _Layers | None = None) -> ConfigError:
    """Of what `loc` names last, there are only these names."""
    names, where = list(names), ".".join(map(str, loc))
    near = difflib.get_close_matches(str(loc[-1]), names, n=1)
    advice = f"Did you mean {'.'.join(map(str, (*loc[:-1], *near)))}?" if near else "Name one of these, or remove it."
    source = f" in {_source(layers, loc)}" if layers else ""
    return ConfigError(f"Unknown {what} {where}{source}.", found=where, allowed=", ".join(names), advice=advice)


def _source(layers: _Layers, loc: tuple[str | int, ...]) -> str:
    """The strongest file that says something about `loc`, by its first two parts."""
    for path, data in reversed(layers.items()):
        if loc[0] in data and (len(loc) == 1 or not isinstance(data[loc[0]], dict) or loc[1] in data[loc[0]]):
            return str(path)
    return "the defaults"
