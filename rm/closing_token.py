"""Detection of tokenizers that end plain text with eos themselves, so that `rm.text.templates` adds none: for fingerprints.

Before `SCORING_VERSION` 2 such texts had two. Only the fingerprints of these models record the change, so that all other
models keep theirs. torch is not imported for models whose files rule this case out, which are nearly all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rm.identity import OFFSET_POSITIONS, ModelError, read_json

_ONE_EOS = "one closing eos"
# model types that read pairs of texts if they have no chat template
_ENCODERS = OFFSET_POSITIONS.union(
    ("albert", "bart", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mt5", "t5", "xlnet")
)


def reading_mark(directory: Path) -> str | None:
    """Return the addition to `rm.identity.identify` for a model whose tokenizer ends plain text with eos; None for others.

    Raises `ModelError` if the tokenizer's files cannot be read.
    """
    if not _may_close_itself(directory):
        return None
    from rm.preview import Preview

    try:
        preview = Preview.load(directory, max_length=1)
    except ModelError:
        return None  # loading it for scoring raises the error
    return _ONE_EOS if preview.template.closes_itself else None


def _may_close_itself(directory: Path) -> bool:
    settings = read_json(directory / "tokenizer_config.json")
    if settings.get("chat_template") or (directory / "chat_template.jinja").exists():
        return False
    if str(read_json(directory / "config.json").get("model_type")) in _ENCODERS:
        return False
    if settings.get("add_eos_token") or not (directory / "tokenizer.json").exists():
        return True
    return _ends_texts(read_json(directory / "tokenizer.json").get("post_processor"))


def _ends_texts(processor: Any) -> bool:
    """Return whether a tokenizer's post-processor could end a text with a special token."""
    if not isinstance(processor, dict) or processor.get("type") == "ByteLevel":
        return False
    if processor.get("type") == "Sequence":
        return any(map(_ends_texts, _list_in(processor, "processors")))
    if processor.get("type") == "TemplateProcessing":
        return any("SpecialToken" in piece for piece in _list_in(processor, "single")[-1:])
    return True


def _list_in(processor: dict[str, Any], name: str) -> list[Any]:
    value = processor.get(name)
    return value if isinstance(value, list) else []
