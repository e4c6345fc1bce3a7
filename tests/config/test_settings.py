"""Settings come from packaged defaults, the user's file and --config, and are refused with the nearest valid key."""

from pathlib import Path

import pytest

from rolecall.config.errors import ConfigError
from rolecall.config.home import Home
from rolecall.config.models import models_table
from rolecall.config.settings import GB, GIB, choose_profile, load_profile, load_settings, profile_names


def test_a_home_without_files_gets_the_packaged_defaults(tmp_path: Path) -> None:
    settings = load_settings(Home(tmp_path), profile="mac-128")

    assert settings.profile.name == "mac-128"
    assert settings.host.idle_exit_s == 600
    assert settings.telemetry.keep_content is True


def test_the_config_file_wins_over_the_users_file_and_both_over_the_defaults(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text("profile: mac-64\nhost: {idle_exit_s: 30}\nmemory: {reserve_gb: 1}\n")
    over = tmp_path / "over.yaml"
    over.write_text("host: {idle_exit_s: 5}\n")

    settings = load_settings(home, over)

    assert (settings.profile.name, settings.host.idle_exit_s, settings.memory.reserve_gb) == ("mac-64", 5.0, 1.0)


@pytest.mark.parametrize(
    ("text", "key", "near"),
    [
        ("memory: {budgte_gb: 3.0}", "memory.budgte_gb", "memory.budget_gb"),
        ("profil: starter", "profil", "profile"),
        ("roles: {coding: {contxt_length: 5}}", "roles.coding.contxt_length", "roles.coding.context_length"),
        ("endpoints: {big: {ulr: 'http://localhost'}}", "endpoints.big.ulr", "endpoints.big.url"),
    ],
)
def test_an_unknown_key_is_named_with_its_file_and_the_nearest_valid_key(
    tmp_path: Path, text: str, key: str, near: str
) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(text)

    with pytest.raises(ConfigError) as raised:
        load_settings(home)

    assert key in str(raised.value)
    assert near in raised.value.advice
    assert str(home.settings_file) in raised.value.message


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00"])
def test_a_file_that_is_no_yaml_mapping_is_a_typed_error(tmp_path: Path, text: str) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(text)

    with pytest.raises(ConfigError) as raised:
        load_settings(home)

    assert raised.value.code == "config_invalid"


def test_a_role_override_changes_that_role_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text("profile: starter\nroles: {coding: {model: starter/smollm2-135m-instruct-4bit}}\n")

    roles = load_settings(home).profile.roles

    assert roles["coding"].model == "starter/smollm2-135m-instruct-4bit"
    assert roles["router"] == load_profile("starter").roles["router"]


def test_an_overrides_lm_studio_id_means_its_repository(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text("profile: starter\nroles: {coding: {model: qwen/Qwen3-4B-thinking-2507}}\n")

    assert load_settings(home).profile.roles["coding"].model == "mlx-community/Qwen3-4B-Thinking-2507-8bit"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("memory: {budget_gb: .inf}", r"memory\.budget_gb.*inf.*Allowed: a finite number"),
        ("roles: {coding: {timeout_s: .inf}}", r"roles\.coding\.timeout_s.*Allowed: a finite number"),
        ("roles: {coding: {max_tokens: many}}", r"roles\.coding\.max_tokens"),
        ("roles: {coding: {context_length: 0}}", r"roles\.coding\.context_length"),
        ("roles: {coding: {engines: []}}", r"roles\.coding\.engines"),
        ("roles: {coding: {engines: mlx}}", r"roles\.coding\.engines"),
        ("roles: {coding: {engines: [mlx, 7]}}", r"roles\.coding\.engines"),
        ("roles: {poetry: {max_tokens: 3}}", r"role roles\.poetry.*Allowed: .*coding"),
        ("roles: 5", r"roles.*Allowed: a valid dictionary"),
        (
            "endpoints: {big: {url: 'http://localhost/v1', model: m, api_key_env: sk-key}}",
            r"endpoints\.big\.api_key_env",
        ),
        ("endpoints: {big: 'http://user:sk-key@localhost/v1'}", r"endpoints\.big"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file_whatever_comes_after(
    tmp_path: Path, text: str, said: str
) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(f"profile: starter\n{text}\n")
    over = tmp_path / "over.yaml"
    over.write_text("host: {idle_exit_s: 5}\nmemory: {reserve_gb: 1}\n")

    with pytest.raises(ConfigError, match=said) as raised:
        load_settings(home, over)

    assert str(home.settings_file) in str(raised.value)
    assert "sk-key" not in str(raised.value)


def test_a_section_that_is_left_empty_stays_as_it_is(tmp_path: Path) -> None:
    Home(tmp_path).settings_file.write_text("memory:\nroles:\nendpoints:\nhost: {idle_exit_s: null}\n")

    assert load_settings(Home(tmp_path)) == load_settings(Home(tmp_path / "other"))


def test_a_role_lists_its_engines_in_order_and_null_keeps_the_profiles_value(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(
        "profile: starter\n"
        "endpoints: {big: {url: 'http://127.0.0.1:8000/v1/', model: tiny, api_key_env: BIG_KEY}}\n"
        "roles: {coding: {engines: [big, mlx], adapter: mine/lora, max_tokens: null}}\n"
    )

    settings = load_settings(home)

    coding = settings.profile.roles["coding"]
    assert (coding.engines, coding.adapter, coding.max_tokens) == (("big", "mlx"), "mine/lora", 320)
    assert settings.endpoints["big"].url == "http://127.0.0.1:8000/v1"
    assert settings.profile.roles["router"].engines == ("mlx",)
    assert load_settings(Home(tmp_path / "other"), profile="starter").fingerprint != settings.fingerprint


def test_an_engine_that_is_nowhere_described_is_refused_with_the_nearest(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(
        "profile: starter\nendpoints: {studio: {url: 'http://[::1]:1234/v1', model: m}}\n"
        "roles: {coding: {engines: [stduio, mlx]}}\n"
    )

    with pytest.raises(ConfigError, match=r"stduio.*Allowed: mlx, studio.*mean .*studio"):
        load_settings(home)


@pytest.mark.parametrize("url", ["http://studio.local:8000/v1", "https://api.openai.com/v1", "http://10.0.0.2/v1"])
def test_an_endpoint_on_another_machine_needs_offline_strict_off(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path)
    endpoint = f"profile: starter\nendpoints: {{far: {{url: '{url}', model: m}}}}\n"
    home.settings_file.write_text(endpoint)

    with pytest.raises(ConfigError, match="offline_strict: false"):
        load_settings(home)

    home.settings_file.write_text(endpoint + "offline_strict: false\n")
    assert not load_settings(home).endpoints["far"].loopback


@pytest.mark.parametrize(
    "url", ["ftp://localhost/v1", "localhost:8000", "http://u:secret@localhost/v1", "http://localhost/v1?key=secret"]
)
def test_an_endpoints_url_is_plain_http_without_credentials_which_no_error_repeats(tmp_path: Path, url: str) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(f"endpoints: {{far: {{url: '{url}', model: m}}}}\n")

    with pytest.raises(ConfigError, match=r"endpoints\.far\.url") as raised:
        load_settings(home)

    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("memory_gib", "platform", "profile"),
    [
        (8, "darwin", "starter"),
        (16, "darwin", "mac-16"),
        (24, "darwin", "mac-16"),
        (64, "darwin", "mac-64"),
        (96, "darwin", "mac-64"),
        (128, "darwin", "mac-128"),
        (512, "darwin", "mac-128"),
        (128, "linux", "starter"),
    ],
)
def test_the_profile_follows_the_machine(memory_gib: int, platform: str, profile: str) -> None:
    assert choose_profile(memory_gib * GIB, platform) == profile


def test_every_profile_names_models_the_table_knows_and_pins_its_router() -> None:
    for name in profile_names():
        profile = load_profile(name)
        assert {spec.model for spec in profile.roles.values()} <= set(models_table())
        assert [role for role, spec in profile.roles.items() if spec.pinned] == ["router"]


def test_the_128_gb_profile_has_the_contexts_concurrency_and_time_outs_of_its_specification() -> None:
    roles = load_profile("mac-128").roles

    assert load_profile("mac-128").budget_gb == 96
    assert {name: (r.context_length, r.concurrency, r.timeout_s) for name, r in roles.items()} == {
        "router": (8192, 1, 10),
        "validation": (8192, 1, 15),
        "summarization": (32768, 1, 10),
        "reasoning": (32768, 2, 60),
        "reasoning_heavy": (32768, 1, 90),
        "coding": (32768, 2, 90),
        "coding_large_context": (131072, 1, 600),
    }


def test_the_budget_leaves_the_reserve_and_a_small_machine_keeps_three_quarters(tmp_path: Path) -> None:
    settings = load_settings(Home(tmp_path), profile="mac-128")

    assert settings.budget_bytes(128 * GIB) == 96 * GB
    assert settings.budget_bytes(64 * GB) == 58 * GB
    assert settings.budget_bytes(8 * GB) == 6 * GB


def test_the_home_is_the_environments_or_the_platforms(tmp_path: Path) -> None:
    assert Home.find({"ROLECALL_HOME": str(tmp_path)}).root == tmp_path
    assert Home.find({"XDG_DATA_HOME": "/data"}).root.name == "rolecall"


def test_an_index_in_an_object_store_needs_a_bucket_and_leave_to_send_documents_away(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text("offline_strict: false\nretrieval: {uri: 's3://bucket/prefix/'}\n")
    assert load_settings(home, profile="starter").retrieval.uri == "s3://bucket/prefix"

    home.settings_file.write_text("retrieval: {uri: 's3://bucket/prefix'}\n")
    with pytest.raises(ConfigError, match=r"retrieval\.uri.*offline_strict: false"):
        load_settings(home, profile="starter")


@pytest.mark.parametrize("uri", ["/work/index", "https://host/x", "s3:///prefix", "s3://id:sk-key@bucket/prefix", "7"])
def test_what_is_no_bucket_is_named_by_its_key_and_not_shown(tmp_path: Path, uri: str) -> None:
    home = Home(tmp_path)
    home.settings_file.write_text(f"offline_strict: false\nretrieval: {{uri: {uri!r}}}\n")
    with pytest.raises(ConfigError, match=r"retrieval\.uri.*Allowed: s3://BUCKET") as raised:
        load_settings(home, profile="starter")
    assert "sk-key" not in str(raised.value)
