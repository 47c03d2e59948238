"""Titles as vectors: what "looks like the history" means to the semantic strategy and to the evaluation.

Three kinds of encoder. `policy` takes the mean of the policy's own input embeddings over a title's tokens, less the
mean over the catalogue. Input embeddings need no forward pass, and unlike the pooled last hidden states of a causal
model, which are made to predict the next token, they do not crowd into a narrow cone; taking off the common mean
removes what is left of that (Mu and Viswanath, "All-but-the-top", arXiv 1702.01417). `tfidf` knows words and
categories alone. Anything else is the folder or hub id of an encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rosepo.utils.errors import UserError, said

if TYPE_CHECKING:
    from rosepo.data.catalogue import Catalogue

BUILT_IN = ("policy", "tfidf")
"""Encoders that are no model of their own."""
TFIDF_SIZE = 128
"""Dimensions kept of a TF-IDF matrix with more features than that."""
MAX_TITLE_TOKENS = 128
"""Longer titles are cut for an encoder of their own."""


def encode_titles(spec: str, catalogue: Catalogue, policy_path: Path, batch_size: int = 256) -> np.ndarray:
    """One vector a title: float32 [n_items, d], rows of length 1 (0 for a title without any feature).

    Args:
        spec: `policy`, `tfidf`, or the folder or hub id of a Transformers encoder (safetensors alone; mean pooling over
            the tokens of a title).
        catalogue: the titles, and for `tfidf` the categories.
        policy_path: model folder behind `policy`.
        batch_size: titles that an encoder of its own takes at once.

    Raises:
        UserError: no encoder under that name.
    """
    if spec == "tfidf":
        return _unit(_tfidf(catalogue))
    if spec == "policy":
        return _unit(_policy(catalogue.titles, policy_path))
    return _unit(_encoder(spec, catalogue.titles, batch_size))


def history_similarity(embeddings: np.ndarray, histories: Sequence[np.ndarray], decay: float) -> np.ndarray:
    """Recency-weighted mean of each history's vectors; its product with a title's vector is their mean similarity.

    Args:
        embeddings: float32 [n_items, d].
        histories: N arrays of item indexes, oldest first; an empty one gives zeros.
        decay: weight of an item relative to the next newer one, in (0, 1].

    Returns:
        float32 [N, d]; not of length 1, so that products are means of cosines.
    """
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    ends = np.cumsum(lengths)
    rows = np.repeat(np.arange(len(histories)), lengths)
    age = np.repeat(ends, lengths) - 1 - np.arange(len(rows))
    weights = np.power(decay, age.astype(np.float64))
    weights /= np.bincount(rows, weights, minlength=len(histories))[rows]
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories]).astype(np.int64, copy=False)
    profiles = np.zeros((len(histories), embeddings.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(lengths)
    if len(filled):
        parts = embeddings[items] * weights.astype(np.float32)[:, None]
        profiles[filled] = np.add.reduceat(parts, (ends - lengths)[filled], axis=0)
    return profiles


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-12)


def _tfidf(catalogue: Catalogue) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Words of any script; a category is one feature of its own, whatever words its name is made of.
    texts = [
        [*title.lower().split(), *(f"category={name}" for name in categories)]
        for title, categories in zip(catalogue.titles, catalogue.categories, strict=True)
    ]
    matrix = TfidfVectorizer(analyzer=list, sublinear_tf=True).fit_transform(texts)
    if matrix.shape[1] <= TFIDF_SIZE or len(texts) <= TFIDF_SIZE:
        return np.asarray(matrix.toarray())
    return np.asarray(TruncatedSVD(TFIDF_SIZE, random_state=0).fit_transform(matrix))


def _policy(titles: Sequence[str], path: Path) -> np.ndarray:
    import torch

    from rosepo.lm.model.loading import load_tokenizer
    from rosepo.lm.titles.embedding_rows import embedding_rows

    tokens = load_tokenizer(path)(list(titles), add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([len(entry) for entry in tokens])
    flat = torch.tensor([token for entry in tokens for token in entry])
    used, places = flat.unique(return_inverse=True)
    with torch.inference_mode():
        offsets = lengths.cumsum(0) - lengths
        means = torch.nn.functional.embedding_bag(places, embedding_rows(path, used), offsets, mode="mean")
        return (means - means.mean(dim=0)).numpy() if len(means) > 1 else means.numpy()


def _encoder(spec: str, titles: Sequence[str], batch_size: int) -> np.ndarray:
    import torch

    model, tokenizer = _load_encoder(spec)
    parts = []
    with torch.inference_mode():
        for start in range(0, len(titles), batch_size):
            batch = tokenizer(
                list(titles[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=min(MAX_TITLE_TOKENS, tokenizer.model_max_length),
                return_tensors="pt",
            )
            hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            parts.append((hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0))
    return torch.cat(parts).numpy()


def _load_encoder(spec: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from rosepo.lm.model.model_source import find_source

    try:
        source = find_source(spec)
        options = {"trust_remote_code": False, **source.options}
        model = AutoModel.from_pretrained(source.path, dtype=torch.float32, use_safetensors=True, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.path, **options)
    except (UserError, OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        reason = said(error).replace("model.path", "the encoder")
        raise UserError(
            f"pairs.encoder={spec} is not policy, tfidf or an encoder that can be loaded: {reason}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer
