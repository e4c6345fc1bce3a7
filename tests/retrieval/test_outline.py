"""Each language's definitions, and the headings of prose, tables and JSON."""

from __future__ import annotations

import pytest

from rolecall.retrieval.outline import LINE, PARAGRAPH, SECTION, outline

CODE = {
    "python": ("a.py", "import os\n\n# why\n@cached\nclass A:\n    @property\n    def b(self):\n        return 1\n"),
    "javascript": (
        "a.jsx",
        "/** x */\nclass A {\n  b() { return <p>{1}</p>; }\n}\nconst c = () => {\n  return 1;\n};\n",
    ),
    "typescript": (
        "a.ts",
        "@Dec()\nexport class A {\n  b(): void {\n    f(<T>x);\n  }\n}\ninterface C {\n  d: 1;\n}\n",
    ),
    "tsx": ("a.tsx", "function A() {\n  return <p/>;\n}\nenum C {\n  X,\n}\n"),
    "java": (
        "A.java",
        "/** x */\n@X\npublic class A<T> {\n  // x\n  void b() {\n  }\n}\nrecord C(int d) {\n}\n",
    ),
    "go": ("a.go", "// A does\ntype A struct {\n\tx int\n}\n\nfunc (a *A) b() {\n}\n\nfunc c() {\n}\n"),
    "rust": (
        "a.rs",
        "/// doc\n#[derive(Debug)]\npub struct A {\n}\nimpl B for A {\n    fn b() {\n    }\n}\nmod c {\n}\n",
    ),
    "c": (
        "a.c",
        "struct A {\n  int x;\n};\n/* x */\nstatic char *b(struct A *a)\n{\n  return 0;\n}\n#define C(x) \\\n  x\n",
    ),
    "header": ("a.h", "namespace n {\ntemplate <class T>\nclass A {\n  int b() {\n    return 0;\n  }\n};\n}\n"),
    "cpp": ("a.cc", "void A::b() {\n}\nenum class C {\n  X\n};\n"),
    "csharp": ("a.cs", "namespace N;\n/// doc\n[Attr]\nclass A {\n  int B() {\n    return 1;\n  }\n}\n"),
    "ruby": ("a.rb", "module M\n  # doc\n  class A\n    def self.b\n    end\n  end\nend\n"),
    "php": ("a.php", "<?php\n/** x */\nclass A {\n  function b() {\n  }\n}\nfunction c() {\n}\n"),
    "shell": ("a.sh", "# doc\na() {\n  echo\n}\n"),
    "kotlin": ("a.kt", "/** x */\ndata class A(val x: Int) {\n  fun b() {\n  }\n}\nobject C {\n}\n"),
    "swift": ("a.swift", "/// doc\nstruct A {\n  func b() {\n  }\n}\nprotocol C {\n}\n"),
    "objective-c": ("a.m", "@interface A : NSObject\n- (void)b;\n@end\n@implementation A\n- (void)b {\n}\n@end\n"),
    "scala": ("a.scala", "/** x */\nclass A {\n  def b() = {\n    1\n  }\n}\nobject C {\n}\n"),
}
FOUND = {
    "python": ["", "A", "A.b"],
    "javascript": ["A", "A.b", "c"],
    "typescript": ["A", "A.b", "C"],
    "tsx": ["A", "C"],
    "java": ["A", "A.b", "C"],
    "go": ["A", "", "A.b", "c"],
    "rust": ["A", "A.b", "c"],
    "c": ["A", "b", "C"],
    "header": ["n", "n.A", "n.A.b"],
    "cpp": ["A::b", "C"],
    "csharp": ["", "A", "A.B"],
    "ruby": ["M", "M.A", "M.A.b"],
    "php": ["", "A", "A.b", "c"],
    "shell": ["a"],
    "kotlin": ["A", "A.b", "C"],
    "swift": ["A", "A.b", "C"],
    "objective-c": ["A", "A.b"],
    "scala": ["A", "A.b", "C"],
}


@pytest.mark.parametrize("language", CODE)
def test_definitions_are_found_with_their_names_and_what_stands_on_them(language: str) -> None:
    title, text = CODE[language]
    outlined = outline(text, "code", "c" if language == "header" else language, title)
    assert list(dict.fromkeys(outlined.headings)) == FOUND[language]


def test_a_definition_begins_with_its_comments_and_decorators() -> None:
    outlined = outline(CODE["python"][1], "code", "python", "a.py")
    assert [i for i, strength in enumerate(outlined.strengths) if strength >= SECTION] == [2, 5]
    trailing = "x = 1  # not of f\ndef f():\n    pass\n"
    assert outline(trailing, "code", "python", "a.py").strengths == [LINE, SECTION + 3, LINE]


def test_broken_code_still_has_definitions() -> None:
    some = "def a():\n    x = [1,\n\nclass C:\n    def d(self):\n        return )\n\ndef e():\n    return 1\n"
    assert outline(some, "code", "python", "a.py").headings[-1] == "e"
    none = "def a(:\n    x = [1,\n\ndef b():\n    return 1\n"
    assert outline(none, "code", "python", "a.py").headings[-1] == "def b()"


def test_a_heading_names_the_five_outermost_definitions() -> None:
    text = "".join(f"function f{i}() {{\n" for i in range(3_000)) + "}\n" * 3_000
    headings = outline(text, "code", "javascript", "a.js").headings
    assert (headings[1], headings[2_999]) == ("f0.f1", "f0.f1.f2.f3.f4")


def test_a_language_without_a_grammar_is_cut_at_lines_that_head_indented_ones() -> None:
    lua = "-- doc\nfunction a(x)\n  return x\nend\n\nlocal y = 1\n"
    outlined = outline(lua, "code", "lua", "a.lua")
    assert list(zip(outlined.strengths, outlined.headings, strict=True)) == [
        (SECTION + 2, "function a(x)"),
        (LINE, "function a(x)"),
        (LINE, "function a(x)"),
        (LINE, ""),
        (LINE, ""),
        (PARAGRAPH + 1, ""),
    ]
    toml = "[tool.x]\na = 1\nb = [\n  2,\n]\n[y]\n"
    assert outline(toml, "code", "toml", "a.toml").headings == [
        *("[tool.x]", "[tool.x]", "[tool.x] > b", "[tool.x] > b", "[tool.x] > b", "[y]"),
    ]


def test_yaml_is_headed_by_its_keys() -> None:
    text = "jobs:\n  # why\n  build:\n    steps:\n      - run:\n          x: 1\n  test: 1\nname: a\n"
    outlined = outline(text, "code", "yaml", "ci.yaml")
    steps = "jobs > build > steps"
    assert outlined.headings == ["jobs", "jobs > build", "jobs > build", steps, steps, steps, "jobs", ""]
    assert outlined.strengths == [SECTION + 2, SECTION - 2, LINE, SECTION - 3, LINE, LINE, LINE, LINE]


@pytest.mark.parametrize(
    ("text", "headings"),
    [
        ("Guide\n=====\n\nSetup\n~~~~~\n", ["Guide", "Guide", "Guide", "Guide > Setup", "Guide > Setup"]),
        ("= Guide\n\nx\n\n== Setup\n", ["", "", "", "", "Setup"]),
        (" = Guide = \n text\n = = Setup = = \n", ["Guide", "Guide", "Guide > Setup"]),
        ("\\section{Guide}\nx\n\\subsection{Setup}\n", ["Guide", "Guide", "Guide > Setup"]),
        ("a = b\n\n= 3\n", ["", "", ""]),
    ],
)
def test_headings_of_plain_text(text: str, headings: list[str]) -> None:
    assert outline(text, "text", "text", "a.txt").headings == headings


def test_front_matter_and_fences_have_no_headings() -> None:
    text = "---\ntitle: x\n---\n# A\n~~~\n# b\n~~~\n# C #\n"
    assert outline(text, "markdown", "markdown", "a.md").headings == ["", "", "", "A", "A", "A", "A", "C"]


def test_items_and_sentences_that_end_a_line_are_weaker_boundaries_than_paragraphs() -> None:
    outlined = outline("One\ntwo.\nThree\n- four\n\nfive\n", "markdown", "markdown", "a.md")
    assert outlined.strengths == [LINE, LINE, 1, 1, LINE, PARAGRAPH]


def test_rows_of_a_table_keep_their_quoted_line_breaks() -> None:
    outlined = outline('a;b\n1;"x\ny"\n2;z\n', "table", "csv", "a.csv")
    assert (outlined.strengths, outlined.columns) == ([PARAGRAPH, PARAGRAPH, LINE, PARAGRAPH], "a | b")
    assert outline("1,2\n3,4\n", "table", "csv", "a.csv").columns == ""
    assert outline("a\tb\n" + "x" * 200_000 + "\t1\nc\td\n", "table", "tsv", "a.tsv").strengths == [PARAGRAPH] * 3


def test_members_of_json_are_units_headed_by_their_keys() -> None:
    outlined = outline('{"a": {"b": [1, "the second one", {"c": "x,{"}]},\n "d": []}', "json", "json", "a.json")
    assert list(zip(outlined.units, outlined.headings, strict=True)) == [
        ("{", ""),
        ('"a": {', "a"),
        ('"b": [', "a.b"),
        ('1, "the second one",', "a.b[0]"),
        (" {", "a.b[2]"),
        ('"c": "x,{"}]},\n', "a.b[2].c"),
        (' "d": []}', "d"),
    ]
    depths = outlined.strengths[1:4]
    assert depths == sorted(depths, reverse=True) and min(depths) > PARAGRAPH and max(depths) < SECTION


def test_each_line_of_json_lines_is_one() -> None:
    outlined = outline('{"a": 1}\n{"a": 2}\n', "json", "json", "a.jsonl")
    lines = [i for i, strength in enumerate(outlined.strengths) if strength == SECTION - 1]
    assert "".join(outlined.units[lines[0] : lines[1]]) == '{"a": 2}\n'
