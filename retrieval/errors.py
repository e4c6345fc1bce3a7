"""Errors of folders, files and the index.

    RetrievalError
    ├── PathMissing        path_missing       no such file, or a glob that matches nothing
    ├── PathNotAllowed     path_not_allowed   outside every allowed folder, or a secret (keys, .env, .ssh)
    ├── PathAmbiguous      path_ambiguous     a relative path where the client runs in `/` or the home folder
    ├── FileUnreadable     file_unreadable    not text, too large, or no permission
    ├── MacosPrivacy       macos_privacy      macOS denies this program the folder
    ├── IndexCorrupt       index_corrupt      the store cannot be read, or was made by a newer version
    └── IndexEmpty         index_empty        nothing is indexed (or no such collection)
"""

from __future__ import annotations

from rolecall.config.errors import RolecallError


class RetrievalError(RolecallError):
    code = "retrieval_error"


class PathMissing(RetrievalError):
    code = "path_missing"


class PathNotAllowed(RetrievalError):
    code = "path_not_allowed"


class PathAmbiguous(RetrievalError):
    code = "path_ambiguous"


class FileUnreadable(RetrievalError):
    code = "file_unreadable"


class MacosPrivacy(RetrievalError):
    code = "macos_privacy"


class IndexCorrupt(RetrievalError):
    code = "index_corrupt"


class IndexEmpty(RetrievalError):
    code = "index_empty"
