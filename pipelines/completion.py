"""What a shell completes beyond the names of commands and options: settings."""

from __future__ import annotations

from typing import Any

import typer


def settings(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """(`key.sub=`, its meaning) for the settings of the command that is being typed."""
    kind: Any = getattr(ctx.command, "settings", None)
    if kind is None or "=" in incomplete:
        return []
    from pipelines.config.fields import settings_of

    names = [(f"{row.name}=", row.first_sentence) for row in settings_of(kind) if "[]" not in row.name]
    return [(name, meaning) for name, meaning in names if name.startswith(incomplete)]
