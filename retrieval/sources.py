"""Which files of a folder are documents: of a kind that can be read, and left in by the ignore rules."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from .access import NOT_UTF8, AllowedFolders, is_secret
from .contract import FailedFile
from .errors import FileUnreadable, PathNotAllowed, os_error

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Lowest rank: an ignore file may take a name back with `!name`. Hidden names, save .github, are left out as well.
IGNORED_FOLDERS = """
node_modules bower_components jspm_packages site-packages venv __pycache__ *.egg-info *.dist-info vendor third_party
Pods Carthage elm-stuff DerivedData build _build dist target obj cmake-build-* _site htmlcov coverage __generated__
storybook-static
"""
IGNORED_FILES = """
*.min.js *.min.css *.bundle.js *.chunk.js *.chunk.css *_pb2.py *_pb2.pyi *_pb2_grpc.py *.pb.go *.pb.cc *.pb.h *.g.dart
*.designer.cs *.lock pnpm-lock.yaml package-lock.json npm-shrinkwrap.json packages.lock.json ~$*
"""
MAX_IGNORE_CHARS = 200_000  # of an ignore file
IGNORE_FILES = (".gitignore", ".rolecallignore")
MARKED = frozenset(("CACHEDIR.TAG", "pyvenv.cfg"))
"""A folder with one of these says itself that it is a cache or a virtual environment."""
BULKY = 20  # pictures in a document and outputs in a notebook make it so many times larger than its text

_LANGUAGES = {
    "python": "py pyi", "javascript": "js mjs cjs jsx", "typescript": "ts tsx mts cts", "java": "java",
    "kotlin": "kt kts", "swift": "swift", "objective-c": "m mm", "c": "c h", "cpp": "cc cpp cxx hh hpp hxx",
    "csharp": "cs", "go": "go", "rust": "rs", "ruby": "rb", "php": "php", "perl": "pl pm", "lua": "lua", "r": "r",
    "julia": "jl", "scala": "scala", "haskell": "hs", "ocaml": "ml mli", "elixir": "ex exs", "erlang": "erl",
    "clojure": "clj cljs", "dart": "dart", "zig": "zig", "nim": "nim", "shell": "sh bash zsh fish",
    "powershell": "ps1", "sql": "sql", "css": "css scss less", "vue": "vue", "svelte": "svelte",
    "yaml": "yaml yml", "toml": "toml", "ini": "ini cfg conf", "proto": "proto", "graphql": "graphql gql",
    "terraform": "tf", "nix": "nix", "metal": "metal", "cuda": "cu cuh", "cmake": "cmake", "makefile": "mk",
}  # fmt: skip
SUFFIXES = {
    **{f".{suffix}": ("code", language) for language, suffixes in _LANGUAGES.items() for suffix in suffixes.split()},
    **dict.fromkeys((".md", ".markdown", ".mdx", ".mdown", ".qmd", ".rmd"), ("markdown", "markdown")),
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".asciidoc", ".org", ".tex"), ("text", "text")),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ("html", "html")),
    **{f".{name}": ("table", name) for name in ("csv", "tsv")},
    **{f".{name}": ("document", name) for name in ("pdf", "docx", "pptx", "xlsx")},
    ".json": ("json", "json"), ".jsonl": ("json", "jsonl"), ".ndjson": ("json", "jsonl"),
    ".ipynb": ("notebook", "notebook"),
}  # fmt: skip
NAMES = {
    "makefile": ("code", "makefile"), "dockerfile": ("code", "dockerfile"), "cmakelists.txt": ("code", "cmake"),
    "readme": ("text", "text"), "license": ("text", "text"), "notice": ("text", "text"), "changelog": ("text", "text"),
}  # fmt: skip


def _any_of(names: str) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, names.split())))


_FOLDERS, _FILES = _any_of(IGNORED_FOLDERS), _any_of(IGNORED_FILES)


Stamp: TypeAlias = tuple[int, int, int, int]
"""Size in bytes, nanoseconds of the last change of content and of anything, inode."""

SETTLED_NS = 2_000_000_000  # two changes closer than a disk's clock ticks (2 s on FAT) may leave a folder one stamp


@dataclass(frozen=True, slots=True)
class Source:
    """A file to index; `kind` is one of `contract.Kind`, `language` one of code or the name of the format."""

    path: str
    kind: str
    language: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def stamp(self) -> Stamp:
        """Tells an unchanged file without reading it; with ctime, since any program can set a file's mtime back."""
        return self.size_bytes, self.mtime_ns, self.ctime_ns, self.inode


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder as the disk shows it. `skipped` counts the files left out by reason: `link`, `unknown_kind`, `secret`,
    `ignored`, `empty`, `too_large`. `marks` are the stamps of what beside the sources makes the tree what it is, None
    where that changed a moment ago."""

    sources: tuple[Source, ...]
    skipped: Mapping[str, int]
    failed: tuple[FailedFile, ...]
    marks: Mapping[str, Stamp | None] | None = None


def kind_of(name: str) -> tuple[str, str] | None:
    """(kind, language) of a file name, None where it is no document."""
    folded = name.casefold()
    return NAMES.get(folded) or SUFFIXES.get(os.path.splitext(folded)[1])  # noqa: PTH122  (no Path per file)


def most_bytes(kind: str, max_bytes: int) -> int:
    """How large a file of a kind may be where text may have `max_bytes`."""
    return max_bytes * BULKY if kind in ("document", "notebook") else max_bytes


@dataclass(frozen=True, slots=True)
class Sources:
    """The files that may be read; `max_bytes` is for text."""

    access: AllowedFolders
    max_bytes: int

    def read(self, path: str) -> tuple[bytes, str]:
        """A file's bytes as they are now, and their sha256. Raises as `AllowedFolders.read` does."""
        kind, _ = kind_of(os.path.basename(path)) or ("", "")  # noqa: PTH119  (no Path per file)
        data, _ = self.access.read_bytes(Path(path), most_bytes(kind, self.max_bytes))
        return data, hashlib.sha256(data).hexdigest()

    def tree(self, root: str, known: Tree | None = None) -> Tree:
        """A folder as it is on the disk, `known` where that still holds. Nothing is read of one that is no longer
        allowed. Blocking."""
        if not any(Path(root).is_relative_to(folder) for folder in self.access.list()):
            reason = "the folder is no longer allowed"
            return Tree((), {}, (FailedFile(path=root, code=PathNotAllowed.code, reason=reason),))
        return known if known is not None and is_same(known) else scan(Path(root), self.max_bytes)


def scan(root: Path, max_bytes: int) -> Tree:
    """Walk a folder that is itself taken whatever its name; links are not followed. Blocking: run it in a thread."""
    settled_ns = time.time_ns() - SETTLED_NS
    marks: dict[str, Stamp | None] = {}
    sources: list[Source] = []
    failed: list[FailedFile] = []
    skipped: Counter[str] = Counter()
    pending: list[tuple[str, tuple[tuple[int, GitIgnoreSpec], ...]]] = [(str(root), ())]
    while pending:
        folder, outer = pending.pop()
        marks[folder] = stamp_at(folder)
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            failed.append(_failed(folder, error))
            continue
        if folder != str(root) and not MARKED.isdisjoint(entry.name for entry in entries):
            continue
        specs = (*outer, *((len(folder) + 1, spec) for spec in _ignore_specs(entries)))
        marks |= {entry.path: stamp_at(entry.path) for entry in entries if entry.name in IGNORE_FILES}
        for entry in entries:
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                kind = kind_of(entry.name)
                reason = _unwanted(entry, is_folder, kind)
                if not (reason or NOT_UTF8.isdisjoint(entry.name)):
                    raise FileUnreadable("Not to be indexed.", found="its name is not valid UTF-8")
                if not reason and _ignored(entry, is_folder, specs):
                    reason = "ignored"
                if reason:
                    skipped[reason] += not is_folder
                elif is_folder:
                    pending.append((entry.path, specs))
                elif isinstance(source := _source(entry, kind or ("", ""), max_bytes), Source):
                    sources.append(source)
                else:
                    skipped[source] += 1
                    marks[entry.path] = stamp_at(entry.path)
            except (OSError, FileUnreadable) as error:
                failed.append(_failed(entry.path, error))
                marks[entry.path] = stamp_at(entry.path)
    sources.sort(key=lambda source: source.path)
    settled = all(stamp is None or stamp[1] < settled_ns for stamp in marks.values())
    return Tree(tuple(sources), +skipped, tuple(failed), marks if settled else None)


def is_same(tree: Tree) -> bool:
    """Whether `scan` would give this tree once more, for a fifth of what that costs."""
    return (
        tree.marks is not None
        and all(stamp_at(path) == stamp for path, stamp in tree.marks.items())
        and all(stamp_at(source.path) == source.stamp for source in tree.sources)
    )


def stamp_at(path: str) -> Stamp | None:
    """None where nothing can be seen there."""
    try:
        return _stamp(os.lstat(path))
    except OSError:
        return None


def _stamp(found: os.stat_result) -> Stamp:
    inode = found.st_ino & (2**63 - 1)  # a signed column holds it
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode


def _unwanted(entry: os.DirEntry[str], is_folder: bool, kind: tuple[str, str] | None) -> str:
    """Why its name alone leaves a file or folder out, or "". The folders above it were looked at before."""
    if entry.is_symlink():
        return "link"
    if not (is_folder or kind):
        return "unknown_kind"
    return "secret" if is_secret(Path(entry.name)) else ""


def _source(entry: os.DirEntry[str], kind: tuple[str, str], max_bytes: int) -> Source | Literal["empty", "too_large"]:
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise FileUnreadable("Not to be indexed.", found="not a regular file")
    if not found.st_size:
        return "empty"
    if found.st_size > most_bytes(kind[0], max_bytes):
        return "too_large"
    return Source(entry.path, *kind, *_stamp(found))


def _failed(path: str, error: OSError | FileUnreadable) -> FailedFile:
    typed = os_error(Path(path), error, Path.home()) if isinstance(error, OSError) else error
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return FailedFile(path=shown, code=typed.code, reason=typed.found)


def _ignore_specs(entries: list[os.DirEntry[str]]) -> Iterator[GitIgnoreSpec]:
    from pathspec import GitIgnoreSpec

    for entry in entries:
        if entry.name in IGNORE_FILES and entry.is_file(follow_symlinks=False):
            try:
                with open(entry.path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123  (no Path per file)
                    lines = file.read(MAX_IGNORE_CHARS).splitlines()
                yield GitIgnoreSpec.from_lines(filter(_is_quick, lines))
            except (OSError, ValueError):
                continue  # an ignore file that cannot be read or parsed ignores nothing


def _is_quick(pattern: str) -> bool:
    """A pattern of many stars becomes a regular expression that a long name keeps busy for ever."""
    return pattern.count("**") <= 2 and all(part.count("*") <= 3 for part in pattern.split("/"))


def _ignored(entry: os.DirEntry[str], is_folder: bool, specs: tuple[tuple[int, GitIgnoreSpec], ...]) -> bool:
    for start, spec in reversed(specs):
        decided = spec.check_file(entry.path[start:] + "/" * is_folder).include
        if decided is not None:
            return decided
    hidden = entry.name.startswith(".") and entry.name != ".github"
    return hidden or (_FOLDERS if is_folder else _FILES).match(entry.name) is not None
