"""Title vectors of every kind of encoder, and the mean over a history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertConfig, BertModel

from rosepo.data.catalogue import Catalogue
from rosepo.lm.titles.title_embeddings import encode_titles, history_similarity
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_model, tiny_tokenizer

CATALOGUE = tiny_catalogue()


def check_unit(vectors: np.ndarray, n_items: int) -> None:
    assert vectors.dtype == np.float32
    assert len(vectors) == n_items
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_the_policys_vectors_are_centred_means_of_its_token_embeddings(policy: Path) -> None:
    found = encode_titles("policy", CATALOGUE, policy)
    check_unit(found, len(CATALOGUE))
    tokenizer, weight = tiny_tokenizer(), tiny_model().get_input_embeddings().weight.detach().numpy()
    means = np.stack(
        [weight[tokenizer(title, add_special_tokens=False)["input_ids"]].mean(axis=0) for title in CATALOGUE.titles]
    )
    means -= means.mean(axis=0)
    np.testing.assert_allclose(found, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-4)


def test_tfidf_knows_words_and_categories(policy: Path) -> None:
    catalogue = Catalogue(
        item_ids=np.arange(4),
        titles=["Blue River", "Blue Night", "König", "千と千尋"],
        categories=[("Drama",), ("Comedy",), ("Drama",), ()],
        train_count=np.ones(4, dtype=np.int64),
    )
    found = encode_titles("tfidf", catalogue, policy)
    check_unit(found, 4)
    similarity = found @ found.T
    assert similarity[0, 1] > 0.1
    assert similarity[0, 2] > 0.1
    assert similarity[1, 2] == pytest.approx(0, abs=1e-6)
    np.testing.assert_array_equal(found, encode_titles("tfidf", catalogue, policy))


def test_tfidf_of_many_words_keeps_128_dimensions_and_is_the_same_every_time(policy: Path) -> None:
    catalogue = tiny_catalogue(400)
    first = encode_titles("tfidf", catalogue, policy)
    assert first.shape == (400, 128)
    check_unit(first, 400)
    np.testing.assert_array_equal(first, encode_titles("tfidf", catalogue, policy))


def test_an_encoder_of_its_own_is_pooled_without_its_padding(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    found = encode_titles(str(tmp_path), CATALOGUE, tmp_path)
    check_unit(found, len(CATALOGUE))
    np.testing.assert_allclose(found, encode_titles(str(tmp_path), CATALOGUE, tmp_path, batch_size=1), atol=1e-5)


@pytest.mark.parametrize("spec", ["/nowhere", "tf-idf"])
def test_an_unknown_encoder_is_the_users_error(spec: str, policy: Path) -> None:
    with pytest.raises(UserError, match=f"pairs.encoder={spec}"):
        encode_titles(spec, CATALOGUE, policy)


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5),
    st.sampled_from([0.5, 0.9, 1.0]),
)
def test_history_vectors_are_recency_weighted_means(histories: list[list[int]], decay: float) -> None:
    embeddings = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)
    found = history_similarity(embeddings, [np.array(history, dtype=np.int64) for history in histories], decay)
    assert found.shape == (len(histories), 3)
    for row, history in enumerate(histories):
        weights = [decay ** (len(history) - 1 - place) for place in range(len(history))]
        expected = sum((w * embeddings[item] for w, item in zip(weights, history, strict=True)), np.zeros(3))
        np.testing.assert_allclose(found[row], expected / (sum(weights) or 1), atol=1e-5)
