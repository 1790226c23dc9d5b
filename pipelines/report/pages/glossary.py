"""The glossary at the end of every page: the meaning of the terms that the page uses."""

from __future__ import annotations

import re
from collections.abc import Iterator

from markupsafe import Markup

_TERMS = (  # term, pattern of its use, meaning
    ("accuracy", r"accuracy", "The share of comparisons in which the preferred response has the higher reward."),
    ("AUC", r"\bAUC\b", "The probability that an accepted response has a higher reward than a rejected one; 0.5 is chance."),
    ("best of n", r"best of n", "The response with the highest reward among n drawn at random for a prompt."),
    ("Bonferroni", r"Bonferroni", "A rule that widens several intervals so that all of them together hold at 95 %."),
    ("bootstrap", r"bootstrap|resamples", "An interval found by drawing whole prompts repeatedly, with replacement."),
    ("Brier", r"\bBrier\b", "The mean squared error of stated probabilities; 0 is perfect, 0.25 is a coin."),
    ("calibration", r"calibrat", "Whether stated probabilities agree with how often they come true."),
    ("disagreement, spread", r"disagreement|\bspread\b", "The standard deviation of the models' standardised rewards of one response."),
    ("ECE", r"\bECE\b", "Expected calibration error: the mean distance between stated and observed probabilities, over bins."),
    ("exploratory", r"exploratory", "To be confirmed on other data: among many rows, some stand out by chance."),
    ("fingerprint", r"fingerprint", "A hash of everything that a reward depends on: weights, tokenizer and settings of the model."),
    ("gold", r"\bgold\b", "The true quality of a response, from a column of the data; no rule reads it."),
    ("held-out", r"held[- ]out", "Left out of training, and used to measure the model."),
    ("hash", r"\bhash\b", "A number of fixed length that differs for different content."),
    ("interval", r"interval", "The range that contains the true value in 95 of 100 such samples; in brackets."),
    ("kept, dropped", r"\b(kept|dropped)\b", "Scored responses that the selection took, and those that it did not."),
    ("KL", r"\bKL\b", "The distance of best of n from the policy that wrote the responses: log n - (n - 1)/n, in nats."),
    ("Kolmogorov-Smirnov", r"Kolmogorov", "The largest distance between two distribution functions; 0 if equal, 1 if separate."),
    ("lead, margin", r"\b(lead|leads|margin|gap)\b", "The reward of one response minus that of another response to the same prompt."),
    ("lengths matched, similar length", r"lengths matched|similar length", "Pairs whose lengths differ by little, so that length cannot decide them."),
    ("median, middle half", r"\b(median|medians|middle half)\b", "The value with half of all values below it; the range of the two quarters around it."),
    ("near-tie", r"near-tie", "A choice by a lead of less than a tenth of the rewards' standard deviation."),
    ("NLL", r"\bNLL\b", "Negative log-likelihood of the judgements under the stated probabilities, in nats; a coin has 0.6931."),
    ("oracle", r"\boracle\b", "A choice by the gold score itself: the best possible choice."),
    ("padding", r"\bpadding\b", "Tokens computed only to make the rows of a batch equally long."),
    ("prompt", r"\bprompts?\b", "All turns of a conversation before its last response."),
    ("random choice of equal size", r"random choice|\brandom\b", "A draw among all scored responses, with as many tokens (or characters) as were kept."),
    ("rejected", r"\brejected\b", "Read but not scored, for the reason given; in preferences, the response that was judged worse."),
    ("relevance gate", r"relevance gate", "A rule before others: a response loses if its cosine with the prompt is lower than another's by more than a gap."),
    ("response", r"\bresponses?\b", "The last turn of a conversation, which is scored and selected."),
    ("reward", r"\brewards?\b", "The raw output of the reward model, higher is better; it has no unit, and its zero is arbitrary."),
    ("scored", r"\bscored\b", "Given a reward; every response that is read is scored or rejected."),
    ("source", r"\bsources?\b", "The value of the corpus's source column: where a row came from."),
    ("Spearman, Pearson", r"\b(Spearman|Pearson)\b", "Correlations, of ranks and of values: 1 means rising together, 0 unrelated, -1 opposite."),
    ("standard deviation", r"standard deviation", "The typical distance of a value from the mean; about two thirds of all values are within one."),
    ("temperature", r"\btemperature\b|\bT =", "The number T by which a reward gap is divided before it is read as a probability, 1/(1 + exp(-gap/T))."),
    ("threshold, min_reward", r"\b(threshold|min_reward)\b", "The lowest reward that a step keeps."),
    ("token", r"\btokens?\b", "A piece of text as the model reads it; about four characters of English."),
    ("truncated, cut", r"\b(truncated|scored cut)\b", "Longer than the model reads, and scored without the rest."),
    ("verdict", r"\bverdict\b", "Whether the model has been shown to be better than chance, and than length, on held-out judgements."),
)  # fmt: skip

_MARKUP = re.compile(r"<(style|title|details|svg)\b.*?</\1>|<[^>]*>", re.DOTALL)
_LABELS = re.compile(r"<text[^>]*>([^<]*)")


def glossary(page: str) -> Markup:
    """Return the section that explains the terms in a page's text; conversations of the corpus do not count."""
    text = " ".join([_MARKUP.sub(" ", page), *_LABELS.findall(page)])
    items = Markup("").join(Markup("<dt>{}</dt><dd>{}</dd>").format(*entry) for entry in _used(text))
    if not items:
        return Markup("")
    return Markup('<footer><h2>Words on this page</h2><dl class="glossary">{}</dl></footer>').format(items)


def _used(text: str) -> Iterator[tuple[str, str]]:
    for term, pattern, meaning in _TERMS:
        if re.search(pattern, text, re.IGNORECASE if pattern.islower() else 0):
            yield term, meaning
