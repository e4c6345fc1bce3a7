"""Which files of a folder are documents: Markdown, text and source code that the ignore rules leave in."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .access import NOT_UTF8, is_secret
from .contract import FailedFile
from .errors import FileUnreadable, os_error

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Lowest rank: a folder's own .gitignore and .rolecallignore come after these and may take a name back with `!name`.
DEFAULT_IGNORES = """
.* !.github node_modules/ bower_components/ jspm_packages/ site-packages/ venv/ __pycache__/ *.egg-info/ vendor/
third_party/ Pods/ DerivedData/ build/ dist/ target/ htmlcov/ coverage/ *.min.js *.min.css *.bundle.js *_pb2.py *.pb.go
*.lock pnpm-lock.yaml go.sum
"""
IGNORE_FILES = (".gitignore", ".rolecallignore")

_LANGUAGES = {
    "python": "py pyi", "javascript": "js mjs cjs jsx", "typescript": "ts tsx mts cts", "java": "java",
    "kotlin": "kt kts", "swift": "swift", "objective-c": "m mm", "c": "c h", "cpp": "cc cpp cxx hh hpp hxx",
    "csharp": "cs", "go": "go", "rust": "rs", "ruby": "rb", "php": "php", "perl": "pl pm", "lua": "lua", "r": "r",
    "julia": "jl", "scala": "scala", "haskell": "hs", "ocaml": "ml mli", "elixir": "ex exs", "erlang": "erl",
    "clojure": "clj cljs", "dart": "dart", "zig": "zig", "nim": "nim", "shell": "sh bash zsh fish",
    "powershell": "ps1", "sql": "sql", "html": "html htm", "css": "css scss less", "vue": "vue", "svelte": "svelte",
    "yaml": "yaml yml", "toml": "toml", "ini": "ini cfg conf", "proto": "proto", "graphql": "graphql gql",
    "terraform": "tf", "nix": "nix", "metal": "metal", "cuda": "cu cuh", "cmake": "cmake", "makefile": "mk",
}  # fmt: skip
SUFFIXES = {
    **{f".{suffix}": ("code", language) for language, suffixes in _LANGUAGES.items() for suffix in suffixes.split()},
    **dict.fromkeys((".md", ".markdown", ".mdx", ".mdown", ".qmd", ".rmd"), ("markdown", "markdown")),
    **dict.fromkeys((".txt", ".text", ".rst", ".adoc", ".asciidoc", ".org", ".tex"), ("text", "text")),
}
NAMES = {
    "makefile": ("code", "makefile"), "dockerfile": ("code", "dockerfile"), "cmakelists.txt": ("code", "cmake"),
    "readme": ("text", "text"), "license": ("text", "text"), "notice": ("text", "text"), "changelog": ("text", "text"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """A file to index; `kind` is markdown|text|code."""

    path: str
    kind: str
    language: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """Tells an unchanged file without reading it; with ctime, since any program can set a file's mtime back."""
        return self.size_bytes, self.mtime_ns, self.ctime_ns, self.inode


@dataclass(frozen=True, slots=True)
class Tree:
    """A folder as the disk shows it. `skipped` counts files left out by rules, size or kind, links among them;
    `cpu_s` is the processor time that the look took."""

    sources: tuple[Source, ...]
    skipped: int
    failed: tuple[FailedFile, ...]
    cpu_s: float


def kind_of(name: str) -> tuple[str, str] | None:
    """(kind, language) of a file name, None where it is no document."""
    folded = name.casefold()
    return NAMES.get(folded) or SUFFIXES.get(os.path.splitext(folded)[1])  # noqa: PTH122  (no Path per file)


def scan(root: Path, max_bytes: int) -> Tree:
    """Walk a folder that is itself taken whatever its name; links are not followed. Blocking: run it in a thread."""
    from pathspec import GitIgnoreSpec

    started = time.thread_time()
    sources: list[Source] = []
    failed: list[FailedFile] = []
    skipped = 0
    defaults = (len(str(root)) + 1, GitIgnoreSpec.from_lines(DEFAULT_IGNORES.split()))
    pending: list[tuple[str, tuple[tuple[int, GitIgnoreSpec], ...]]] = [(str(root), (defaults,))]
    while pending:
        folder, outer = pending.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            failed.append(_failed(folder, error))
            continue
        specs = (*outer, *((len(folder) + 1, spec) for spec in _ignore_specs(entries)))
        for entry in entries:
            try:
                is_folder = entry.is_dir(follow_symlinks=False)
                kind = kind_of(entry.name)
                unwanted = entry.is_symlink() or not (is_folder or kind) or is_secret(Path(entry.path))
                if not (unwanted or NOT_UTF8.isdisjoint(entry.name)):
                    raise FileUnreadable("Not to be indexed.", found="its name is not valid UTF-8")
                if unwanted or _ignored(entry.path, is_folder, specs):
                    skipped += not is_folder
                elif is_folder:
                    pending.append((entry.path, specs))
                elif source := _source(entry, kind or ("", ""), max_bytes):
                    sources.append(source)
                else:
                    skipped += 1
            except (OSError, FileUnreadable) as error:
                failed.append(_failed(entry.path, error))
    sources.sort(key=lambda source: source.path)
    return Tree(tuple(sources), skipped, tuple(failed), time.thread_time() - started)


def _source(entry: os.DirEntry[str], kind: tuple[str, str], max_bytes: int) -> Source | None:
    """None for an empty or too large file, which is left out."""
    found = entry.stat(follow_symlinks=False)
    if not stat.S_ISREG(found.st_mode):
        raise FileUnreadable("Not to be indexed.", found="not a regular file")
    if not 0 < found.st_size <= max_bytes:
        return None
    inode = found.st_ino & (2**63 - 1)  # a signed column holds it
    return Source(entry.path, *kind, found.st_size, found.st_mtime_ns, found.st_ctime_ns, inode)


def _failed(path: str, error: OSError | FileUnreadable) -> FailedFile:
    typed = os_error(Path(path), error, Path.home()) if isinstance(error, OSError) else error
    shown = os.fsencode(path).decode("utf-8", "backslashreplace")
    return FailedFile(path=shown, code=typed.code, reason=typed.found)


def _ignore_specs(entries: list[os.DirEntry[str]]) -> Iterator[GitIgnoreSpec]:
    from pathspec import GitIgnoreSpec

    for entry in entries:
        if entry.name in IGNORE_FILES and entry.is_file(follow_symlinks=False):
            try:
                yield GitIgnoreSpec.from_lines(Path(entry.path).read_text("utf-8", errors="replace").splitlines())
            except (OSError, ValueError):
                continue  # an ignore file that cannot be read or parsed ignores nothing


def _ignored(path: str, is_folder: bool, specs: tuple[tuple[int, GitIgnoreSpec], ...]) -> bool:
    for start, spec in reversed(specs):
        decided = spec.check_file(path[start:] + "/" * is_folder).include
        if decided is not None:
            return decided
    return False
