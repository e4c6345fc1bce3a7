"""Definitions in source code, by tree-sitter: where each begins and ends, and its name. Broken code still has some."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tree_sitter import Language, Node, Query

_GRAMMARS = {
    "python": "python", "javascript": "javascript", "typescript": "typescript", "tsx": "typescript", "java": "java",
    "go": "go", "rust": "rust", "c": "c", "cpp": "cpp", "cuda": "cpp", "metal": "cpp", "csharp": "c_sharp",
    "ruby": "ruby", "php": "php", "shell": "bash", "kotlin": "kotlin", "swift": "swift", "objective-c": "objc",
    "scala": "scala",
}  # fmt: skip
"""Our names of languages to the wheels' (`tree_sitter_<name>`)."""

_FACTORIES = {"typescript": "language_typescript", "tsx": "language_tsx", "php": "language_php"}

_DEFINITIONS = """
function_definition function_declaration function_item generator_function_declaration method_definition
method_declaration constructor_declaration init_declaration method singleton_method preproc_function_def
class_definition class_declaration abstract_class_declaration class_specifier class class_interface
class_implementation companion_object object_definition object_declaration interface_declaration
protocol_declaration trait_definition trait_item trait_declaration impl_item struct_item struct_specifier
struct_declaration union_item union_specifier enum_item enum_specifier enum_definition enum_declaration
record_declaration annotation_type_declaration type_definition type_spec type_alias_declaration concept_definition
mod_item module internal_module namespace_definition namespace_declaration macro_definition
"""
_ATTACHED = "comment line_comment block_comment multiline_comment decorator attribute_item template_parameter_list"
"""Kinds of nodes, of every grammar; one that a grammar lacks is passed by. What is attached to a definition stands
on it."""

_ASSIGNED = """
(variable_declarator value: [(arrow_function) (function_expression)]) @definition
(assignment_expression right: [(arrow_function) (function_expression)]) @definition
"""
_NAMES = ("name", "declarator", "left")
_RECEIVER = re.compile(r"(\w+)\s*(?:\[.*\])?\s*\)$", re.DOTALL)
_NAME_CHARS = 80
_SHATTERED = 2_000
"""Pieces of a part that the grammar cannot read. A query's time grows with their square: 2 s at 40,000."""


@dataclass(frozen=True, slots=True)
class Definition:
    """Lines are 0-based and inclusive; `first_line` is that of the comments and decorators on it."""

    name: str
    first_line: int
    last_line: int
    start_byte: int
    end_byte: int


def definitions(text: str, language: str, title: str) -> list[Definition] | None:
    """In the order of their begin, the outer first; None for a language without a grammar, and for code too
    broken to show one. `title` ends in the file's name, which tells TSX and C++ headers."""
    if language == "typescript" and title.endswith(".tsx"):
        language = "tsx"
    elif language == "c" and title.endswith(".h"):
        language = "cpp"  # reads C too
    if language not in _GRAMMARS:
        return None
    from tree_sitter import Parser, QueryCursor

    grammar, query = _grammar(language)
    data = text.encode()
    root = Parser(grammar).parse(data).root_node
    if root.has_error and any(
        node.type == "ERROR" and node.child_count > _SHATTERED for node in (root, *root.children)
    ):
        return None
    captures = QueryCursor(query).captures(root)
    if root.has_error and "definition" not in captures:
        return None
    above = {}  # last line of what may be attached, to its first
    for node in captures.get("attached", ()):
        line_start = data.rfind(b"\n", 0, node.start_byte) + 1
        if not data[line_start : node.start_byte].strip():
            above[_last_line(node)] = node.start_point.row
    found = []
    for node in captures.get("definition", ()):
        if name := _name(node):
            first = node.start_point.row
            while first - 1 in above:
                first = above[first - 1]
            found.append(Definition(name, first, _last_line(node), node.start_byte, node.end_byte))
    return sorted(found, key=lambda one: (one.start_byte, -one.end_byte))


@cache
def _grammar(language: str) -> tuple[Language, Query]:
    from tree_sitter import Language, Query

    wheel = import_module(f"tree_sitter_{_GRAMMARS[language]}")
    grammar = Language(getattr(wheel, _FACTORIES.get(language, "language"))())
    patterns = [
        f"({kind}) @{capture}"
        for kinds, capture in ((_DEFINITIONS, "definition"), (_ATTACHED, "attached"))
        for kind in kinds.split()
        if grammar.id_for_node_kind(kind, True)
    ]
    if grammar.id_for_node_kind("generator_function_declaration", True):  # JavaScript and its kin
        patterns.append(_ASSIGNED)
    return grammar, Query(grammar, "\n".join(patterns))


def _last_line(node: Node) -> int:
    """A node that takes in its line's end stops, to the parser, at the start of the next."""
    return max(node.start_point.row, node.end_point.row - (node.end_point.column == 0))


def _name(node: Node) -> str:
    """Empty for what defines nothing here, such as `struct point p`."""
    if node.type.endswith("_specifier") and node.child_by_field_name("body") is None:
        return ""
    inner = node.child_by_field_name("type") if node.type == "impl_item" else node
    while inner is not None and inner.type != "qualified_identifier":
        deeper = next((child for field in _NAMES if (child := inner.child_by_field_name(field))), None)
        if deeper is None:
            break
        inner = deeper
    if inner == node:  # a grammar without fields
        inner = next((child for child in node.named_children if "identifier" in child.type), None)
    if inner is None or inner.text is None:
        return ""
    name = " ".join(inner.text.decode(errors="replace").split())[:_NAME_CHARS]
    receiver = node.child_by_field_name("receiver")
    owner = receiver and receiver.text and _RECEIVER.search(receiver.text.decode(errors="replace")[-_NAME_CHARS:])
    return f"{owner[1]}.{name}" if owner else name
