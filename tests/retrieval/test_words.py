"""Under which other words a text is found."""

from __future__ import annotations

from rolecall.retrieval.words import split_identifiers, stem_words, stems


def test_camel_case_words_are_split_for_full_text() -> None:
    assert split_identifiers("getUserName parses HTTPResponse2 in snake_case") == "get User Name HTTP Response 2"


def test_inflected_forms_meet_in_their_first_letters() -> None:
    assert stem_words("Verteidigung Verteidiger übernehmen kurz") == "Verte0 Verte0 übern0"
    assert len(set(stem_words("документация документации").split())) == 1
    assert stem_words("대학교에서 대학교를 대학") == "대학0 대학0"


def test_scripts_without_spaces_have_no_stems_but_pairs_of_characters() -> None:
    assert stem_words("机器学习是人工智能的一个分支 日本語のテキストです ข้อความภาษาไทย") == ""
    assert stems("Tokyo 人工智能") == {"tokyo", "人工", "工智", "智能"}
    assert stems("Verteidigungen, die") == {"verte", "die"}
