from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.lm.model.dropout import training_dropout
from rosepo.lm.model.scratch import SPECIAL_TOKENS, scratch_model, train_tokenizer
from rosepo.utils.errors import UserError
from tests.helpers import tiny_catalogue, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS)))
def test_any_text_round_trips_exactly(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text
    assert not set(ids) & set(TOKENIZER.all_special_ids)


def test_frequent_titles_become_single_tokens_and_the_template_costs_little() -> None:
    catalogue, template = tiny_catalogue(), TemplateConfig()
    config = ScratchConfig(vocab_size=2000)
    tokenizer = train_tokenizer(catalogue.titles, catalogue.train_count, config, template)
    lengths = [len(tokenizer(title, add_special_tokens=False)["input_ids"]) for title in catalogue.titles]
    assert np.mean(lengths) < 1.2
    assert len(tokenizer(template.prefix, add_special_tokens=False)["input_ids"]) == 1
    split = train_tokenizer(catalogue.titles, catalogue.train_count, ScratchConfig(vocab_size=2000, split_words=True))
    assert not any("Ġ" in token[1:] for token in split.get_vocab())
    assert len(tokenizer) <= 2000


def test_popular_titles_are_learned_first() -> None:
    titles, counts = ["Common Words of a Title (1999)", "Scarce Film, by Hardly Any Body"], np.array([50, 1])
    tokenizer = train_tokenizer(titles, counts, ScratchConfig(vocab_size=300, split_words=False))
    common, scarce = (len(tokenizer(title, add_special_tokens=False)["input_ids"]) for title in titles)
    assert common < scarce


def test_the_most_popular_titles_are_one_token_each_and_any_text_still_round_trips(tmp_path: Path) -> None:
    titles = [f"The {n}th Film: “Überlänge & 東京” ({1900 + n})" for n in range(300)] + ["Alien", "Aliens"]
    counts = np.arange(len(titles), 0, -1)
    config = ScratchConfig(vocab_size=400, whole_titles=250)
    train_tokenizer(titles, counts, config).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = tokenizer([*titles, "Alien (1979)", "never seen"], add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode(ids) for ids in found] == [*titles, "Alien (1979)", "never seen"]
    assert {len(ids) for ids in found[:250]} == {1}
    assert len({ids[0] for ids in found[:250]}) == 250
    assert all(len(ids) > 1 for ids in found[250:300])
    assert len(tokenizer) == 400 + 250
    # A title inside another text is no token of its own: what is not in the list is merged as ever.
    whole = train_tokenizer(["Alien", "Alien (1979)"], np.array([9, 0]), ScratchConfig(vocab_size=300, whole_titles=1))
    assert len(whole("Alien", add_special_tokens=False)["input_ids"]) == 1
    assert whole.decode(whole("Alien (1979)", add_special_tokens=False)["input_ids"]) == "Alien (1979)"


def test_special_tokens_come_first_and_only_bos_is_added_to_text() -> None:
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    assert TOKENIZER("a")["input_ids"][:1] == [1]
    assert 2 not in TOKENIZER("a")["input_ids"]


def test_a_title_with_a_special_token_is_refused() -> None:
    with pytest.raises(UserError, match=r"'x<\|eos\|>'.*rename"):
        train_tokenizer(["x<|eos|>"], np.array([1]), ScratchConfig())


def test_every_process_trains_the_same_tokenizer_and_weights() -> None:
    script = (
        "import hashlib; from tests.helpers import tiny_tokenizer; from rosepo.config import ScratchConfig;"
        "from rosepo.lm.model.scratch import scratch_model; t = tiny_tokenizer();"
        "m = scratch_model(ScratchConfig(hidden_size=32), t, 64, seed=3);"
        "print(hashlib.sha256(t.backend_tokenizer.to_str().encode()).hexdigest(), m.lm_head.weight.sum().item())"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    digest = hashlib.sha256(TOKENIZER.backend_tokenizer.to_str().encode()).hexdigest()
    model = scratch_model(ScratchConfig(hidden_size=32), TOKENIZER, 64, seed=3)
    assert run.stdout.split() == [digest, str(model.lm_head.weight.sum().item())]


def test_weights_depend_on_the_seed_and_leave_the_global_one_alone() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, second = (scratch_model(ScratchConfig(hidden_size=32), TOKENIZER, 64, seed) for seed in (0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert not torch.equal(first.lm_head.weight, second.lm_head.weight)
    assert first.lm_head.weight is first.model.embed_tokens.weight
    assert first.config.max_position_embeddings == 64


def test_dropout_works_in_training_mode_alone_and_leaves_no_trace_in_the_weights() -> None:
    model = scratch_model(ScratchConfig(hidden_size=32), TOKENIZER, 64, seed=0)
    ids = torch.arange(3, 13)[None]
    names, plain = list(model.state_dict()), model.eval()(ids).logits
    handles = training_dropout(model, 0.3)
    assert len(handles) == 1 + 2 * 2
    assert list(model.state_dict()) == names
    assert torch.equal(model.eval()(ids).logits, plain)
    model.train()
    assert not torch.equal(model(ids).logits, model(ids).logits)
    assert training_dropout(model, 0.0) == []
    with pytest.raises(ValueError, match="none of the modules"):
        training_dropout(torch.nn.Linear(2, 2), 0.1)
