"""Parser and builder errors in plain words: which graph, which node, what is wrong, what to do."""

import re
from collections.abc import Iterable
from typing import Any

# What the library says (a piece of it), what that means, and what to do.
_KNOWN = (
    (
        r"kOPT values .* violate shape constraints",
        "the optimum of the profile breaks an equality between inputs (two axes that the graph "
        "adds or multiplies have different sizes)",
        "give all inputs of one axis the same optimum",
    ),
    (
        r"k(MIN|MAX) values .* violate shape constraints",
        "the minimum or maximum of the profile breaks an equality between inputs",
        "give all inputs of one axis the same minimum and maximum",
    ),
    (
        r"dynamic or shape inputs, but no optimization profile",
        "an input has a dynamic axis and no profile",
        "give every dynamic input a profile",
    ),
    (
        r"(must have (the )?same type|same types|mixed types|type mismatch|types? .*not match)",
        "two inputs of one node have different types in a strongly typed network",
        "insert a Cast, or export the half variant again",
    ),
    (
        r"(plugin not found|no importer registered|No importer|unsupported operator)",
        "the library has no operator of this name",
        "replace the operator in the model, or use the onnxruntime provider",
    ),
    (
        r"(out of memory|OutOfMemory|memory allocation)",
        "there was not enough memory to build",
        "lower the profile's maxima, or build on a machine with more memory",
    ),
    (
        r"(static dimension|dimension.*mismatch|kMIN dimensions .* differ|incompatible dim)",
        "the profile and the graph disagree about a fixed dimension",
        "take the shapes from the graph",
    ),
)


def explain(messages: Iterable[str]) -> str:
    """Turn library messages into one line; unknown ones are quoted.

    Example:
        >>> explain(["x.cpp:3: Network has dynamic or shape inputs, but no optimization profile."])
        'an input has a dynamic axis and no profile; give every dynamic input a profile'
    """
    texts = [message for message in messages if message.strip()]
    for pattern, meaning, fix in _KNOWN:
        if any(re.search(pattern, text, re.IGNORECASE) for text in texts):
            return f"{meaning}; {fix}"
    if not texts:
        return "the library gave no reason; build again with a smaller profile to find the cause"
    return f"the library says: {_clean(texts[0])}"


def parser_errors(graph: str, parser: Any) -> str:
    """All errors of a parser, each with its node and operator, as one line."""
    parts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = error.node_name() or f"node {error.node()}"
        kind = error.node_operator()
        what = f"{where} ({kind})" if kind else where
        parts.append(f"{what}: {explain([error.desc()])}")
    if not parts:
        parts = ["the parser gave no reason"]
    return f"graph {graph!r} was not accepted: " + "; ".join(dict.fromkeys(parts))


def _clean(text: str) -> str:
    """One line without source positions."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"^\[?[\w./]+\.(cpp|h):+\d+[\])]*:?\s*(In function [^:]+:\s*)?", "", text)
    return text[:300]
