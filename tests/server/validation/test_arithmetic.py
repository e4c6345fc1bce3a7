from __future__ import annotations

import pytest

from rolecall.server.validation.arithmetic import arithmetic_check, equations
from rolecall.server.validation.contract import Verdict


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7", "12 times 12 is 144", "two plus two equals four", "15% of 200 is 30", "10 / 3 = 3.33",
        "10 divided by 4 is 2.5", "2^10 = 1024", "(3 + 4) * 2 = 14", "$3 + $4 = $7", "1,000 + 1 = 1001", "5 - 7 = -2",
        "7 // 2 = 3", "6 x 7 = 42", "1/3 \u2248 0.333", "99 * 99 is about 10000", "100 - 20 = 80%", "0.1 + 0.2 = 0.3",
        "2 / 3 = 0.667", "2 / 3 = 0.66", "-2 / 3 = -0.67",
    ],
)  # fmt: skip
def test_a_right_equation_is_supported_and_decides_where_it_is_all_there_is(text: str) -> None:
    found = arithmetic_check(text)
    assert (found.verdict, found.decisive) == (Verdict.SUPPORTED, True)


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8", "12 times 12 is 145.", "two plus two equals five", "15 percent of 200 is 31", "6 x 7 = 43",
        "So there are 48/2 = 24 in May. Then 48+24 = 73 in all.", "3 + 4 == 8", "(3 + 4) * 2 = 11",
        "- Total: 4 * 5 = 25", "100 / 3 = 33.4", "2 / 3 = -0.67",
    ],
)  # fmt: skip
def test_a_wrong_equation_is_unsupported_and_says_the_right_value(text: str) -> None:
    found = arithmetic_check(text)
    assert (found.verdict, found.decisive) == (Verdict.UNSUPPORTED, True)
    assert "is wrong: the left side is" in found.detail


@pytest.mark.parametrize(
    "text",
    [
        "x + 3 + 4 = 9", "2x + 3 = 7", "f(3) = 9", "n - 2 = 0", "from 2010-2012 is 5", "24/7 is 3",
        "1 + 1 = 10 in binary",
        "2+2=5 is wrong", "5 km + 3 km = 8 km", "2 * 3 = 6x", "9**9**9 = 5", "1 / 0 = 3", "7 - 3 = 4 - x", "a = 3",
        "v1.2 + 3 = 4", "3 / 2 = 1 1/2", "18 pink - 6 = 11 pink", "96 \\cdot 216 = 144^2", "1200/1000=1.2Mb",
        "Is 5 + 3 = 9?", "log 100 * 2 = 4", "half of 10 + 2 = 7", "1/2 of 10 + 3 = 8", "500 * 4 = 2 thousand",
    ],
)  # fmt: skip
def test_what_is_no_plain_equation_is_left_alone(text: str) -> None:
    assert equations(text) == []


def test_a_bare_number_is_held_against_the_sum_that_was_asked_for() -> None:
    assert arithmetic_check("144", "What is 12 * 12?").verdict is Verdict.SUPPORTED
    assert arithmetic_check("The answer is 145.", "what is 12 times 12").verdict is Verdict.UNSUPPORTED
    assert arithmetic_check("145", "What is the capital of France?").verdict is Verdict.ABSTAIN


def test_right_equations_inside_prose_inform_but_do_not_decide() -> None:
    found = arithmetic_check("Whales are fish, and they sing in choirs because 3 + 4 = 7.")
    assert (found.verdict, found.decisive) == (Verdict.SUPPORTED, False)
