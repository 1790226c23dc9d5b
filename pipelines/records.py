"""The small records that stages hand to one another; stages themselves never import each other."""

from __future__ import annotations
