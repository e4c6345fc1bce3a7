"""Reading YAML: safe, and with the C parser where PyYAML has it, which is ten times faster at start."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load_yaml(text: str) -> Any:
    """The value of one YAML document.

    Raises:
        yaml.YAMLError: not YAML.
    """
    return yaml.load(text, Loader=_LOADER)
