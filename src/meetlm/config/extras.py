"""Optional packages: a missing package is an error that names the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

from meetlm.config.errors import ConfigError


def require_extra(package: str, extra: str, purpose: str) -> None:
    """Raise an error where an optional package is missing.

    Args:
        package: Name of the package.
        extra: The extra of meetlm that installs it.
        purpose: What requires it, as the subject of the message: ``an LLM judge``.

    Raises:
        ConfigError: The package is not installed.
    """
    if find_spec(package) is None:
        raise ConfigError(f"{purpose} requires the package {package}: pip install 'meetlm[{extra}]'")
