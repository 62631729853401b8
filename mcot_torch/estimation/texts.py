"""From the text of a step to a kind of step: normalised, embedded, clustered. It sees the text and nothing else."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from mcot_torch.errors import InputError

__all__ = ["Embedding", "kinds_of_steps", "normalise"]

Embedding = Callable[[list[str]], NDArray[np.floating]]
"""Texts -> (n, d) array."""

_CALCULATOR = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_TOKEN = r"(?u)\w+|[^\w\s]"  # one-letter words and operators carry meaning: 'peg A', '+'
_MOST_TERMS = 20_000
_DIMENSIONS = 100
_NOISE = 4.0  # standard errors of a correlation
_SMALLEST_VARIANCE = 1e-6  # of the largest


def normalise(text: str, keep_numbers: bool = False) -> str:
    """Lower case, one blank between words, calculator notes <<...>> removed, numbers replaced by 'number'.

    Two solutions of one kind of problem differ in their numbers, and a step is the same step whatever they are: 'so 16 - 3 =
    13 eggs are left' is a subtraction. Keep them where they name the state, as in 'cell 3'.
    """
    plain = _CALCULATOR.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join((plain if keep_numbers else _NUMBER.sub(" number ", plain)).split())


def kinds_of_steps(
    traces: Sequence[Sequence[str]],
    n_kinds: int,
    embedding: Embedding | NDArray[np.floating] | None = None,
    kinetic: bool = True,
    seed: int = 0,
) -> NDArray[np.int64]:
    """(n,) kind of each step of all traces, 0 .. n_kinds - 1, by k-means (the most frequent kind is 0).

    By default a step is the TF-IDF vector of its words and of pairs and triples of neighbouring words, brought to 100
    dimensions (latent semantic analysis), and then to kinetic coordinates (`kinetic_map`).

    Args:
        traces: their steps, normalised; n steps in all.
        n_kinds: kinds, no more than there are different texts.
        embedding: a function from texts to a (len(texts), d) array, or an (n, d) array, one row a step in their order.
        kinetic: False clusters the embedding as it is.
        seed: of k-means.

    Raises:
        InputError: scikit-learn is missing, or an embedding of the wrong shape.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        raise InputError('reading traces needs scikit-learn: pip install "mcot_torch[traces]"') from None
    texts = [text for trace in traces for text in trace]
    different, back = np.unique(np.array(texts, dtype=object), return_inverse=True)
    if embedding is None:
        terms = TfidfVectorizer(token_pattern=_TOKEN, ngram_range=(1, 3), sublinear_tf=True, max_features=_MOST_TERMS)
        weights = terms.fit(texts).transform(different)
        size = min(_DIMENSIONS, *(n - 1 for n in weights.shape))
        vectors = TruncatedSVD(size, random_state=seed).fit_transform(weights) if size > 0 else weights.toarray()
        vectors = vectors[back]
    elif callable(embedding):
        vectors = _checked(embedding(different.tolist()), len(different))[back]
    else:
        vectors = _checked(embedding, len(texts))
    if kinetic:
        vectors = kinetic_map(vectors, [len(trace) for trace in traces])
    points, back, count = np.unique(vectors, axis=0, return_inverse=True, return_counts=True)
    model = KMeans(min(n_kinds, len(points)), n_init=4, random_state=seed)
    found = model.fit_predict(points, sample_weight=count)[back]
    order = np.argsort(np.argsort(-np.bincount(found, minlength=model.n_clusters), kind="stable"), kind="stable")
    kinds: NDArray[np.int64] = order[found].astype(np.int64)
    return kinds


def kinetic_map(vectors: NDArray[np.floating], lengths: Sequence[int]) -> NDArray[np.float64]:
    """(n, m) coordinates in which points are far apart that the next steps tell apart.

    Time-lagged independent components of the features, each scaled by its autocorrelation λ at one step (Noé and Clementi
    2015): what a writer varies from line to line without meaning, 'so', 'now we have', says nothing about the next line, has
    λ near 0 and drops out; what the next line depends on stays. Components whose λ is no more than noise are dropped; where
    all are, the vectors are returned as they are.

    Args:
        vectors: (n, d) features of the steps, trace after trace.
        lengths: steps of each trace, summing to n.
    """
    x = np.asarray(vectors, dtype=np.float64)
    follows = np.ones(len(x), dtype=bool)
    follows[np.cumsum(lengths) - 1] = False
    now = np.flatnonzero(follows)
    if len(now) <= x.shape[1]:
        return x
    x = x - x.mean(axis=0)
    before, after = x[now], x[now + 1]
    values, axes = np.linalg.eigh((before.T @ before + after.T @ after) / (2 * len(now)))
    real = values > _SMALLEST_VARIANCE * values.max()
    white = axes[:, real] / np.sqrt(values[real])
    lagged = white.T @ (before.T @ after + after.T @ before) @ white / (2 * len(now))
    persistence, rotation = np.linalg.eigh(lagged)
    kept = persistence > _NOISE / np.sqrt(len(now))
    return x @ white @ rotation[:, kept] * persistence[kept] if kept.any() else np.asarray(vectors, dtype=np.float64)


def _checked(vectors: object, n: int) -> NDArray[np.float64]:
    array = np.asarray(vectors, dtype=np.float64)
    if array.ndim != 2 or len(array) != n or not np.isfinite(array).all():
        raise InputError(
            f"the embedding is an array of shape {array.shape} for {n} texts; it must be ({n}, d), of finite numbers"
        )
    return array
