"""The formats of preference data, in a table: the columns that identify each, who judged, and its reader.

The most specific format comes first. Published data sets and pairs are identified by columns that only they have, the
others by roles (`prompt`, `responses`, `score`, ...), which `data.columns` can assign to any column. A new format is one
more entry, and a reader in `rm.preferences.readers` (see `row_values`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rm.preferences import verdicts
from rm.preferences.groups import Group
from rm.preferences.readers import lists, pairs, votes
from rm.preferences.row_values import PROMPTS, RESPONSES, PreferenceRow, ReadSettings

RequiredColumns = tuple[str | tuple[str, ...], ...]


BESIDE = ("system", "history", "context", "tools")
"""Roles of columns that extend the prompt."""
EVERYWHERE = ("source", "subset", *BESIDE)
"""Roles that every format accepts."""


def _accept_any(row: PreferenceRow) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of row.

    `needs` are its columns (of a tuple, any one), and `when` checks their types. `roles` are those that `data.columns`
    may rename, `inner` those that name a field inside a list of records. `subset` and `item` are the columns of a group's
    subset and id. With `has_gaps`, `data.min_gap` and `data.gap_use` act on the gaps of judgements. With
    `edges_from_scores`, edges are made from the scores after groups are merged.
    """

    name: str
    needs: RequiredColumns
    read: Callable[[PreferenceRow, ReadSettings], Group]
    when: Callable[[PreferenceRow], bool] = _accept_any
    origin: str = "human"
    roles: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    subset: str = "subset"
    item: str | None = None
    has_gaps: bool = False
    edges_from_scores: bool = False

    def missing_columns(self, row: PreferenceRow) -> list[str]:
        """Return the needed columns that `row` does not have."""
        wanted = [need if isinstance(need, tuple) else (need,) for need in self.needs]
        return [" or ".join(names) for names in wanted if not any(name in row for name in names)]

    def takes(self, columns: Mapping[str, str]) -> bool:
        """Return whether this format has every role in `columns`."""
        return columns.keys() <= {*self.roles, *self.inner, *EVERYWHERE}

    def fits(self, row: PreferenceRow) -> bool:
        """Return whether a row has the columns and types of this format."""
        return not self.missing_columns(row) and self.when(row)


def _holds_texts(row: PreferenceRow) -> bool:
    """Return whether both sides are lists of texts; TRL's and OpenRLHF's lists hold messages."""
    sides = [row.get("chosen"), row.get("rejected")]
    return all(isinstance(side, list) and side and isinstance(side[0], str) for side in sides)


def _holds_records(name: str, key: str) -> Callable[[PreferenceRow], bool]:
    def look(row: PreferenceRow) -> bool:
        value = row.get(name)
        return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and key in value[0]

    return look


_PAIR = ("chosen", "rejected")
_ANY_PROMPT = (PROMPTS,)

PUBLISHED = (
    Format(
        name="rewardbench2",
        needs=(*_ANY_PROMPT, *_PAIR),
        read=lists.rewardbench2,
        when=_holds_texts,
        roles=("prompt", *_PAIR, "item"),
        item="id",
    ),
    Format(
        name="rewardbench",
        needs=("prompt", *_PAIR, "chosen_model", "rejected_model", "subset"),
        read=pairs.explicit,
    ),
    Format(
        name="ultrafeedback_binarized",
        needs=("prompt", "prompt_id", "messages", *_PAIR, "score_chosen", "score_rejected"),
        read=pairs.scored,
        origin="model",
        has_gaps=True,
    ),
    Format(
        name="shp",
        needs=("history", "human_ref_A", "human_ref_B", "labels", "score_A", "score_B"),
        read=pairs.shp,
        origin="implicit",
        subset="domain",
        has_gaps=True,
    ),
    Format(
        name="helpsteer2",
        needs=("prompt", "response_1", "response_2", "preference_strength"),
        read=votes.helpsteer2,
        has_gaps=True,
    ),
    Format(
        name="helpsteer3",
        needs=("context", "response1", "response2", "overall_preference"),
        read=votes.helpsteer3,
        subset="domain",
        has_gaps=True,
    ),
    Format(
        name="pandalm",
        needs=(*_ANY_PROMPT, "response1", "response2", "annotator1"),
        read=votes.annotators,
        roles=("prompt",),
    ),
    Format(
        name="ultrafeedback",
        needs=("instruction", "completions"),
        read=lists.ultrafeedback,
        when=_holds_records("completions", "response"),
        origin="model",
        roles=("prompt",),
        inner=("score",),
        has_gaps=True,
        edges_from_scores=True,
    ),
    Format(
        name="nectar",
        needs=("prompt", "answers"),
        read=lists.nectar,
        when=_holds_records("answers", "rank"),
        origin="model",
    ),
    Format(
        name="qa_feedback",
        needs=("question", "prediction 1", "prediction 2", "preference"),
        read=lists.qa_feedback,
    ),
    Format(
        name="scored_pairs",
        needs=(*_PAIR, "score_chosen", "score_rejected"),
        read=pairs.scored,
        roles=("prompt", *_PAIR, "score_chosen", "score_rejected"),
        has_gaps=True,
    ),
    Format(
        name="prompt_chosen_rejected",
        needs=(*_ANY_PROMPT, *_PAIR),
        read=pairs.explicit,
        roles=("prompt", *_PAIR, "margin"),
    ),
    Format(
        name="hh",
        needs=_PAIR,
        read=pairs.hh,
        when=lambda row: pairs.is_hh(row.get("chosen")),
        roles=(*_PAIR, "margin"),
    ),
    Format(
        name="chosen_rejected_messages",
        needs=_PAIR,
        read=pairs.implicit_messages,
        when=lambda row: isinstance(row.get("chosen"), list),
        roles=(*_PAIR, "margin"),
    ),
    Format(
        name="chosen_rejected_text",
        needs=_PAIR,
        read=pairs.implicit_text,
        when=lambda row: isinstance(row.get("chosen"), str),
        roles=(*_PAIR, "margin"),
    ),
)

BY_ROLES = (
    Format(
        name="ranking",
        needs=(*_ANY_PROMPT, "responses", "ranking"),
        read=lists.ranking,
        roles=("prompt", "responses", "ranking"),
    ),
    Format(
        name="choice",
        needs=(*_ANY_PROMPT, "responses", "best"),
        read=lists.choice,
        roles=("prompt", "responses", "best"),
    ),
    Format(
        name="scored_list",
        needs=(*_ANY_PROMPT, "responses", "scores"),
        read=lists.scored_list,
        roles=("prompt", "responses", "scores"),
        has_gaps=True,
        edges_from_scores=True,
    ),
    Format(
        name="verdicts",
        needs=(),
        read=votes.verdict,
        when=verdicts.fits,
        roles=("prompt", "responses", "winner"),
    ),
    Format(
        name="labels",
        needs=(*_ANY_PROMPT, RESPONSES, "label"),
        read=lists.labelled_response,
        roles=("prompt", "response", "label"),
    ),
    Format(
        name="scores",
        needs=(*_ANY_PROMPT, RESPONSES, "score"),
        read=lists.scored_response,
        roles=("prompt", "response", "score"),
        has_gaps=True,
        edges_from_scores=True,
    ),
)

FORMATS = {format.name: format for format in (*PUBLISHED, *BY_ROLES)}
