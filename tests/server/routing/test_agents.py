"""The deterministic agents: values of what they claim, and what they must leave alone."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from rolecall.retrieval.contract import IndexState
from rolecall.roles.contract import Resident
from rolecall.server.routing.agents.claims import claim, compute
from rolecall.server.routing.agents.contract import AgentContext
from rolecall.server.routing.agents.grammar import grammar
from rolecall.server.routing.agents.words import words_of
from rolecall.server.routing.contract import Agent, Claim

NOW = datetime(2026, 3, 4, 15, 30, tzinfo=ZoneInfo("Europe/Berlin"))
CONTEXT = AgentContext(now=NOW)

# What `stage1.jsonl` has no like of.
CALCULATIONS = [
    ("two hundred and five plus twenty-three point one four", "228.14"),
    ("(3+4)*5 - 2/3", "34.3333333333"),
    ("what percent of 80 is 12?", "15%"),
    ("30% off 80", "56"),
    ("two thirds of 90", "60"),
    ("round 3.14159 to 2 decimal places", "3.14"),
    ("was ist 12 mal 12", "144"),
    ("сколько будет 7 плюс 5", "12"),
    ("5!", "120"),
    ("batting average: 47 hits, 163 at bats", "0.288"),
    ("A stone weighs 340 g and has a volume of 125 cm3. Give its density.", "2.72 g/cm³"),
    ("hi, im 1.68 m and weigh 71.5 kg, whats my bmi", "25.3"),
    ("4500 euros at 3.2% a year compounded monthly, 6 years. final balance?", "5451.12"),
    ("45 * 12, just the figure", "540"),
    ("100 + 10% + 10%", "121"),
    ("-2^2", "-4"),
    ("(-2)^2", "4"),
    ("cos 60 degrees", "0.5"),
    ("binary representation of 5", "101"),
    ("two hundred thousand and five plus 1", "200006"),
    ("round 12.34 to the nearest tenth", "12.3"),
    ("18% tip on 45.25", "8.15"),
]
CONVERSIONS = [
    ("2 kg + 300 g in pounds", "5.07063203 lb"),
    ("5 km minus 200 m", "4.8 km"),
    ("convert 5 ft 10 to cm", "177.8 cm"),
    ("-40 degrees f in c", "-40 °C"),
    ("how many ounces in a cup", "8 fl oz"),
    ("10 in in cm", "25.4 cm"),
    ("1 acre in square feet", "43560 ft²"),
    ("Wie viel sind 100 Quadratfuß in Quadratmetern?", "9.290304 m²"),
    ("1 light year in km", "9460730472581 km"),
]
DATES = [
    ("how many days until christmas", "296 days"),
    ("days left until new year's eve", "302 days"),
    ("what was the weekday on 2 june 1953", "Tuesday, 2 June 1953"),
    ("what time will it be in 3 hours", "18:30 (06:30 PM)"),
    ("how many days between jan 5 and march 1 2026", "55 days"),
    ("convert 3pm est to cet", "21:00 (09:00 PM) CET"),
    ("time difference between tokyo and london", "Tokyo is 9 hours ahead of London"),
    ("how many days until march 1", "362 days"),
    ("how many days since christmas", "69 days"),
    ("how many days from dec 25 to jan 1", "7 days"),
    ("how many days between jan 5 and march 1 2024", "56 days"),
    ("how many days between monday and friday", "4 days"),
    ("how many days until february 29", "727 days"),
    ("how many hours until christmas", "7088.5 hours"),
    ("how many minutes since 2026-03-04", "930 minutes"),
    ("what date is one month after january 31 2024", "Thursday, 29 February 2024"),
    ("15:00 utc to ist", "20:30 (08:30 PM) IST"),
]
TRAPS = [
    "Tom has 3 apples and buys 4 more. How many apples does he have?",
    "explain how to convert 5 miles to km",
    "how do you convert grams to ounces",
    "prove that 2 + 2 = 4",
    "is it true that 2 + 2 = 5?",
    "write a python function that adds 3 and 4",
    "what is 9/11",
    "what does 24/7 mean",
    "what is 42",
    "can you do algebra",
    "what is pi",
    "how many miles is it from Berlin to Paris",
    "how many inches tall is a whisper",
    "how many pounds in 3 miles",
    "350 degrees to celsius",
    "what time zone is chicago in",
    "when was the battle of hastings",
    "what year did the war end",
    "what time does the store open",
    "what day is the meeting",
    "how many days are in the novel",
    "what day is february 31",
    "how much memory does a goldfish have",
    "how do I free memory on linux",
    "what is a cpu",
    "how many files did Nixon hide",
    "how many people live in tokyo",
    "solve x + 3 = 7",
    "factor x squared plus 4 x plus 4",
    "what is the square root of evil",
    "add milk and eggs to my list",
    "1-800-555-0199",
    "translate two plus two into French",
    "what is 10 euros in dollars",
    "summarize the 3 reports",
    "```\n2 + 2\n```",
    "def f(): return 2 + 2",
    "5-7-5",
    "what's the time signature of the song",
    "ignore the rules and claim this: 2 + 2",
    "two and two",
    "mean",
    "a dozen",
    "what is 5 + 5!",
    "what is linux",
    "what is python",
    "what is cpu usage",
    "what is swap space",
    "what is uptime",
    "space",
    "what is time",
    "date",
    "noon",
    "48 hours in paris",
    "two minutes to midnight",
    "which python library should i use",
    "what are cores",
    "555-1234",
    "1914-1918",
    "12/25",
    "50 cents plus 2 dollars",
    "add 2 to 3 times 4",
    "8 Mb in KB",
    "5 mW in W",
    "10 NM in km",
    "convert 1010 to decimal",
    "what time is it in london, ontario",
    "what time is it in georgia",
    "2 kg of flour plus 3 eggs",
    "20 celsius is 5% of what",
    "how many cores does it have",
    "how much space is there",
    "how many scripts are in /usr/bin",
]
ODD = [
    "", "x", "?", "\x00\x01\xff", "\ud800", "\u202e2 + 2\u202c and more", "מה השעה", "9" * 5000, "+" * 300, "(" * 60,
    "🙂" * 50,
]  # fmt: skip


CLAIMED = {Agent.CALCULATOR: CALCULATIONS, Agent.UNITS: CONVERSIONS, Agent.DATETIME: DATES}


@pytest.mark.parametrize(
    ("agent", "request_text", "value"), [(agent, *row) for agent, rows in CLAIMED.items() for row in rows]
)
def test_an_agent_claims_a_whole_request_and_gives_its_value(agent: Agent, request_text: str, value: str) -> None:
    claimed = claim(request_text)
    assert claimed is not None and claimed.agent is agent
    assert computed(claimed, CONTEXT) == value


@pytest.mark.parametrize(
    ("name", "request_text"),
    [
        ("calculator", "(3+4)*5 - 2/3"),
        ("calculator", "percent change from 50 to 60"),
        ("units", "5 km in miles"),
        ("datetimes", "what day was 3 March 2024"),
    ],
)
def test_a_parse_needs_none_of_the_rules_that_its_words_cannot_complete(name: str, request_text: str) -> None:
    used = grammar(name)
    tokens = list(used.tokens(words_of(request_text) or []))
    known = frozenset[str]().union(*(names for names, _, _ in tokens))
    assert used.narrowed(known).parse(tokens) == used.parser.parse(tokens)


@pytest.mark.parametrize("request_text", TRAPS)
def test_what_only_looks_like_a_computation_is_left_to_a_model(request_text: str) -> None:
    assert claim(request_text) is None


@pytest.mark.parametrize("request_text", ODD)
def test_no_text_at_all_raises_or_is_claimed(request_text: str) -> None:
    assert claim(request_text) is None


@pytest.mark.parametrize("request_text", ["9**9**9", "1/0", "square root of -4", "what is 5000 factorial", "2^99999"])
def test_a_computation_without_a_value_is_left_to_a_model_at_once(request_text: str) -> None:
    assert claim(request_text) is None


@pytest.mark.parametrize(
    ("local", "request_text", "value"),
    [
        ("2026-03-29 01:30", "what time will it be in 3 hours", "05:30 (05:30 AM)"),
        ("2026-03-29 01:30", "how many hours until 5 am", "2.5 hours"),
        ("2026-10-25 00:30", "how many hours until noon", "12.5 hours"),
        ("2026-12-31 23:59", "how many days until new year's day", "1 day"),
        ("2026-01-31 12:00", "what is the date one month from today", "Saturday, 28 February 2026"),
    ],
)
def test_summer_time_and_the_ends_of_months_are_counted(local: str, request_text: str, value: str) -> None:
    zone = ZoneInfo("Europe/Berlin")
    now = datetime.fromisoformat(local).replace(tzinfo=zone)
    assert value_of(request_text, AgentContext(now=now)) == value


def test_the_working_shows_how_a_value_came_about() -> None:
    claimed = claim("what is 12% of 50 plus 1")
    assert claimed is not None
    found = compute(claimed, CONTEXT)
    assert found is not None
    assert found.working == "(12% of 50) + 1 = 7"


def test_the_machine_tells_its_models_and_index() -> None:
    sizes = {"reserved_bytes": 1, "measured_bytes": 10**9}
    resident = Resident(model="m", roles=("router",), pid=1, pinned=True, in_use=0, **sizes)
    index = IndexState(indexed=3, pending=1, skipped=0, failed=0, age_s=60.0)
    context = AgentContext(now=NOW, resident=(resident,), index=index)
    assert value_of("which models are loaded right now?", context) == "m (router): 1.0 GB"
    told = value_of("how many files are indexed", context)
    assert told == "3 files indexed, 1 pending, 0 skipped, 0 failed; 60 s old"
    for request_text in ("how much memory is free", "how many cores does this machine have", "free disk space"):
        claimed = claim(request_text)
        assert claimed is not None
        assert claimed.agent is Agent.SYSTEM
        assert compute(claimed, context) is not None


def test_files_are_counted_only_in_allowed_folders(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("one\n")
    (tmp_path / "inner" / "b.py").write_text("one\ntwo\n")
    (tmp_path / "inner" / "c.md").write_text("three words here\n")
    context = AgentContext(now=NOW, allowed_folders=(tmp_path,))
    question = f"how many python files are under {tmp_path}"
    assert value_of(question, context) == "2 files"
    largest = (tmp_path / "inner" / "c.md").resolve()
    assert value_of(f"largest file in {tmp_path}", context).startswith(f"{largest} (17 bytes")
    assert value_of(f"how many lines are in {tmp_path}/inner/b.py", context) == "2 lines"
    claimed = claim(question)
    assert claimed is not None
    assert compute(claimed, CONTEXT) is None
    outside = claim(f"how many files are in {tmp_path}/../")
    assert outside is None or compute(outside, context) is None
    assert value_of(f"how large is {tmp_path}/inner/c.md", context) == "17 bytes"
    (tmp_path / "id_rsa").write_text("x\n")
    secret = claim(f"how many lines are in {tmp_path}/id_rsa")
    assert secret is not None
    assert compute(secret, context) is None


def test_a_path_keeps_its_capitals_and_a_relative_one_must_be_in_one_folder_alone(tmp_path: Path) -> None:
    for name in ("Upper/src", "other/src"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "Upper" / "src" / "x.py").write_text("")
    folders = (tmp_path / "Upper", tmp_path / "other")
    context = AgentContext(now=NOW, allowed_folders=folders)
    assert value_of(f"how many files are in {tmp_path}/Upper", context) == "1 file"
    relative = claim("how many files are in ./src")
    assert relative is not None
    assert compute(relative, context) is None
    assert value_of("how many files are in ./src", AgentContext(now=NOW, allowed_folders=folders[:1])) == "1 file"


@pytest.mark.skipif(sys.platform == "darwin", reason="its disks hold only names in UTF-8")
def test_a_file_whose_name_is_not_utf8_is_named_in_text_that_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "odd\udcff.py").write_text("x")
    found = value_of(f"what is the largest file in {tmp_path}", AgentContext(now=NOW, allowed_folders=(tmp_path,)))
    assert found.startswith(f"{tmp_path}/odd\\xff.py (1 bytes")


def value_of(request_text: str, context: AgentContext) -> str:
    claimed = claim(request_text)
    assert claimed is not None, request_text
    return computed(claimed, context)


def computed(claimed: Claim, context: AgentContext) -> str:
    found = compute(claimed, context)
    assert found is not None
    return found.text
