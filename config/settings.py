"""Typed, frozen settings: packaged defaults, then the user's `config.yaml`, then a `--config` file.

An unknown key is an error that names the key, the file and the nearest valid key.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
import sys
from collections.abc import Mapping
from functools import reduce
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import urlsplit

import psutil
import yaml
from pydantic import AfterValidator, Field, ValidationError

from .errors import ConfigError
from .home import Home
from .models import known_repository, load_yaml, packaged
from .policy import RoutingSettings, check_rules
from .profile import Profile, RoleSpec, Strict

GB = 1_000_000_000
GIB = 1 << 30

_Form = TypeVar("_Form", bound=Strict)
_Layers = dict[Path, dict[Any, Any]]
"""What each file says, the strongest last."""

AUTO_PROFILES = ("mac-16", "mac-32", "mac-64", "mac-128")


def _address(schemes: tuple[str, ...], form: str) -> AfterValidator:
    """A URL of these schemes with a host and no secrets, without the slash at its end; `form` shows one."""

    def plain(url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in schemes or not parts.hostname or set("@?#") & set(url):
            raise ValueError(f"{form}, without credentials, query or fragment")
        return url.rstrip("/")

    return AfterValidator(plain)


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
    uri: Annotated[str, _address(("s3", "gs", "az"), "s3://BUCKET/PREFIX, gs://... or az://...")] | None = None


class EndpointSettings(Strict):
    """An OpenAI-compatible server that roles may name in `engines`.

    `url` ends where `/chat/completions` begins (mostly in `/v1`). `api_key_env` names the environment variable (or line
    of ROLECALL_HOME/env) that holds its key; the key itself stands in no settings file. `timeout_s` is how long the
    server may be silent. At most `concurrency` requests are sent at once. `context_length` (tokens) where the server
    does not say it.
    """

    url: Annotated[str, _address(("http", "https"), "http://HOST:PORT/v1 or https://...")]
    model: str
    api_key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    timeout_s: float = Field(default=120.0, gt=0)
    concurrency: int = Field(default=4, gt=0)
    context_length: int | None = Field(default=None, gt=0)

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
    routing: RoutingSettings
    endpoints: dict[str, EndpointSettings]


class _File(_Sections):
    """The shape of `config.yaml`."""

    profile: str
    offline_strict: bool
    roles: dict[str, RoleSpec]


class Settings(_Sections):
    """All settings of one host, with the profile chosen and the user's overrides applied."""

    profile: Profile

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
    """A packaged profile by name. Raises ConfigError: no such profile."""
    if name not in profile_names():
        raise ConfigError.unknown("profile", (str(name),), profile_names())
    return Profile.model_validate({"name": name, **packaged(f"profiles/{name}.yaml")})


def choose_profile(memory_bytes: int, platform: str = sys.platform) -> str:
    """The profile for a machine: `starter` off a Mac or under 16 GB, else the largest that is not above it."""
    if platform != "darwin":
        return "starter"
    fitting = [name for name in AUTO_PROFILES if int(name.removeprefix("mac-")) * GIB <= memory_bytes]
    return fitting[-1] if fitting else "starter"


def load_settings(home: Home, config_path: Path | None = None, profile: str | None = None) -> Settings:
    """Settings for a home; `profile` overrides the files' choice. Raises ConfigError: a file that is not YAML, an
    unknown key, a value of the wrong type, an unknown profile."""
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
            raise ConfigError.unknown("role", ("roles", str(role)), chosen.roles, _source(layers, ("roles", role)))
    file = _validated(_File, merged, layers)
    _check_sections(file, layers)
    check_rules(file.routing, chosen.roles, _source(layers, ("routing",)))
    for role, spec in file.roles.items():
        if spec.model != chosen.roles[role].model and (repository := known_repository(spec.model)):
            file.roles[role] = spec.model_copy(update={"model": repository})
    sections = {section: getattr(file, section) for section in _Sections.model_fields}
    return Settings(profile=chosen.model_copy(update={"roles": file.roles}), **sections)


class _Policy(Strict):
    routing: RoutingSettings


def load_routing(path: Path, profile: Profile) -> RoutingSettings:
    """A file's `routing:` section, or a file that is one, checked as at start. Raises ConfigError: as
    `load_settings`."""
    data = _read_yaml(path)
    held = {"routing": data.get("routing", data) or {}}
    routing = _validated(_Policy, held, {path: held}).routing
    check_rules(routing, profile.roles, str(path))
    return routing


def _check_sections(file: _File, layers: _Layers) -> None:
    """What one section asks of another."""
    away = [("retrieval", "uri", file.retrieval.uri)]
    away += [("endpoints", key, each.url) for key, each in file.endpoints.items() if not each.loopback]
    for section, key, url in away if file.offline_strict else ():
        if url:
            raise ConfigError(
                f"{section}.{key} is on another machine, and offline_strict keeps requests and documents on this one.",
                found=f"{url} in {_source(layers, (section, key))}",
                allowed="localhost, 127.0.0.1 or [::1] for an endpoint, no retrieval.uri",
                advice="Set `offline_strict: false` if requests and documents' text may go there, or remove it.",
            )
    engines = ["mlx", *file.endpoints]
    for role, spec in file.roles.items():
        for engine in spec.engines:
            if engine not in engines:
                path = ("roles", role, "engines", engine)
                raise ConfigError.unknown("engine", path, engines, _source(layers, path))


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


def _validated(form: type[_Form], data: dict[Any, Any], layers: _Layers) -> _Form:
    """The data in this form; the error is of the first thing that is wrong, unknown keys before all.

    What stands at an address is not shown: a key may.
    """
    try:
        return form.model_validate(data)
    except ValidationError as error:
        first = min(error.errors(), key=lambda wrong: wrong["type"] != "extra_forbidden")
    loc, path = first["loc"], list(map(str, first["loc"]))
    if loc[:2] == ("routing", "rules") and len(loc) > 2:  # a rule is known by its name
        rule = data["routing"]["rules"][loc[2]]
        path[2] = str(rule.get("name", loc[2])) if isinstance(rule, dict) else path[2]
    if first["type"] == "extra_forbidden":
        held: Any = form
        for part in loc[:-1]:
            if fields := getattr(held, "model_fields", None):
                held = fields[part].annotation
            else:  # a list or dictionary of models
                (held,) = {*get_args(held)} - {str, ...}
        raise ConfigError.unknown("key", tuple(path), held.model_fields, _source(layers, loc))
    raise ConfigError(
        f"Invalid value for {'.'.join(path)} in {_source(layers, loc)}.",
        found="not shown here" if loc[0] == "endpoints" or loc[-1] == "uri" else repr(first.get("input"))[:100],
        allowed=first["msg"].removeprefix("Input should be ").removeprefix("Value error, "),
        advice="Correct the value.",
    )


def _source(layers: _Layers, loc: tuple[str | int, ...]) -> str:
    """The strongest file that says something about `loc`, by its first two parts."""
    for path, data in reversed(layers.items()):
        if loc[0] in data and (len(loc) == 1 or not isinstance(data[loc[0]], dict) or loc[1] in data[loc[0]]):
            return str(path)
    return "the defaults"
