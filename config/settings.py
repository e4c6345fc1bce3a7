"""Typed, frozen settings: packaged defaults, then the user's `config.yaml`, then a `--config` file.

An unknown key is an error that names the key, the file and the nearest valid key.
"""

from __future__ import annotations

import difflib
import hashlib
import ipaddress
import json
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import ConfigError
from .home import Home
from .models import known_repository
from .profile import Profile, RoleSpec
from .yaml_text import load_yaml

GB = 1_000_000_000
GIB = 1 << 30

AUTO_PROFILES = ("mac-16", "mac-32", "mac-64", "mac-128")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class MemorySettings(_Strict):
    """`budget_gb` None takes the profile's; the budget never exceeds the machine's memory less `reserve_gb`."""

    budget_gb: float | None = Field(default=None, gt=0)
    reserve_gb: float = Field(ge=0)


class HostSettings(_Strict):
    """`idle_exit_s`: the host leaves after so long without sessions or work. `spare_worker` keeps one started worker
    ready, so that the next model loads without waiting for imports."""

    idle_exit_s: float = Field(gt=0)
    spare_worker: bool
    queue_limit: int = Field(gt=0)


class TelemetrySettings(_Strict):
    """`keep_content`: receipts keep the text of requests and answers, cut at `max_content_bytes` each. The oldest
    beyond `max_receipts` are dropped."""

    keep_content: bool
    max_content_bytes: int = Field(gt=0)
    max_receipts: int = Field(gt=0)


class RetrievalSettings(_Strict):
    """`chunk_tokens` in tokens of the embedder; larger files than `max_file_mb` are skipped."""

    chunk_tokens: int = Field(gt=0)
    max_file_mb: float = Field(gt=0)


class EndpointSettings(_Strict):
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


class _File(_Strict):
    """The shape of `config.yaml`."""

    profile: str
    memory: MemorySettings
    host: HostSettings
    telemetry: TelemetrySettings
    retrieval: RetrievalSettings
    offline_strict: bool
    endpoints: dict[str, EndpointSettings]
    roles: dict[str, dict[str, Any]]


_NAMED: Mapping[str, type[BaseModel]] = {"roles": RoleSpec, "endpoints": EndpointSettings}


class Settings(_Strict):
    """All settings of one host, with the profile chosen and the user's overrides applied."""

    profile: Profile
    memory: MemorySettings
    host: HostSettings
    telemetry: TelemetrySettings
    retrieval: RetrievalSettings
    endpoints: dict[str, EndpointSettings] = {}

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
        raise ConfigError(
            "No such profile.", found=repr(name), allowed=", ".join(profile_names()), advice="Name one of these."
        )
    text = files("rolecall.config").joinpath("profiles", f"{name}.yaml").read_text("utf-8")
    return Profile.model_validate({"name": name, **load_yaml(text)})


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
    merged: dict[str, Any] = _read_yaml(Path(str(files("rolecall.config").joinpath("defaults.yaml"))))
    layers = [home.settings_file] if home.settings_file.exists() else []
    if config_path is not None:
        if not config_path.exists():
            raise ConfigError("The --config file does not exist.", found=str(config_path), advice="Check the path.")
        layers.append(config_path)
    for path in layers:
        layer = _read_yaml(path)
        _check_keys(layer, _File, path)
        merged = _merge(merged, layer)
    source = str(layers[-1]) if layers else "defaults"
    try:
        file = _File.model_validate(merged)
    except ValidationError as error:
        raise _invalid(error, source) from None
    _check_endpoints(file, source)
    name = profile or file.profile
    chosen = load_profile(choose_profile(psutil.virtual_memory().total) if name == "auto" else name)
    return Settings(
        profile=_override(chosen, file, source),
        memory=file.memory,
        host=file.host,
        telemetry=file.telemetry,
        retrieval=file.retrieval,
        endpoints=file.endpoints,
    )


def _check_endpoints(file: _File, source: str) -> None:
    for name, endpoint in file.endpoints.items():
        if file.offline_strict and not endpoint.loopback:
            raise ConfigError(
                f"The endpoint {name!r} is on another machine, and offline_strict keeps all requests on this one.",
                found=f"endpoints.{name}.url: {endpoint.url} in {source}",
                allowed="localhost, 127.0.0.1 or [::1]",
                advice="Set `offline_strict: false` if requests and their documents may go there, or remove it.",
            )


def _override(profile: Profile, file: _File, source: str) -> Profile:
    """The profile with the user's values; what a file leaves out or sets to null stays the profile's."""
    roles = dict(profile.roles)
    engines = ["mlx", *file.endpoints]
    for name, override in file.roles.items():
        if name not in roles:
            raise ConfigError(
                f"The profile {profile.name!r} has no role {name!r}.",
                found=f"roles.{name} in {source}",
                allowed=", ".join(roles),
                advice="Rename or remove that entry.",
            )
        changed = {key: value for key, value in override.items() if value is not None}
        if isinstance(changed.get("model"), str):
            changed["model"] = known_repository(changed["model"]) or changed["model"]
            changed.setdefault("quantization", "as stored")
        try:
            roles[name] = RoleSpec.model_validate(roles[name].model_dump() | changed)
        except ValidationError as error:
            raise _invalid(error, source, f"roles.{name}.") from None
        for engine in roles[name].engines:
            if engine not in engines:
                near = difflib.get_close_matches(engine, engines, n=1)
                raise ConfigError(
                    f"The role {name!r} names the engine {engine!r}, which is not there.",
                    found=f"roles.{name}.engines in {source}",
                    allowed=", ".join(engines),
                    advice=f"Did you mean {near[0]!r}?" if near else "Describe it under `endpoints:`.",
                )
    return profile.model_copy(update={"roles": roles})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = load_yaml(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"The settings file {path} cannot be read.", found=reason, advice="Mend the file or remove it."
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"The settings file {path} is not a mapping.", found=type(data).__name__, advice="Write `key: value` lines."
        )
    return data


def _check_keys(data: Mapping[Any, Any], model: type[BaseModel], path: Path, prefix: str = "") -> None:
    for key, value in data.items():
        field = model.model_fields.get(str(key))
        if field is None:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1)
            raise ConfigError(
                f"Unknown key {prefix}{key} in {path}.",
                found=f"{prefix}{key}",
                allowed=", ".join(model.model_fields),
                advice=f"Did you mean {prefix}{near[0]}?" if near else "Remove the key.",
            )
        if isinstance(value, Mapping):
            if inner := _NAMED.get(str(key)):
                for name, entry in value.items():
                    _check_keys(entry if isinstance(entry, Mapping) else {}, inner, path, f"{key}.{name}.")
            elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                _check_keys(value, field.annotation, path, f"{prefix}{key}.")


def _merge(base: dict[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in layer.items():
        current = out.get(key)
        out[key] = _merge(current, value) if isinstance(current, dict) and isinstance(value, Mapping) else value
    return out


def _invalid(error: ValidationError, source: str, prefix: str = "") -> ConfigError:
    first = error.errors()[0]
    where = prefix + ".".join(str(part) for part in first["loc"])
    return ConfigError(
        f"Invalid value for {where} in {source}.",
        found="not shown here" if where.endswith(".url") else repr(first.get("input"))[:100],  # it may hold a password
        allowed=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        advice="Correct the value.",
    )
