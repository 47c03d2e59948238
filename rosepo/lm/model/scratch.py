"""Models that need no download: a small Llama, and a BPE tokenizer trained on the titles of the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rosepo.config import ScratchConfig, TemplateConfig
from rosepo.utils.errors import UserError

PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"
SPECIAL_TOKENS = (PAD, BOS, EOS)

# A title counts as often as it was liked, within these bounds: the rare ones are learned too, and the size of the
# training text stays bounded whatever the size of the log.
_MAX_WEIGHT = 100
_MAX_LINES = 2_000_000


def train_tokenizer(
    titles: Sequence[str], counts: np.ndarray, config: ScratchConfig, template: TemplateConfig | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Sennrich et al. 2016) of ``config.vocab_size`` tokens, the same on every run.

    Any text round-trips exactly. The ``config.whole_titles`` most popular titles are one token each, on top of these
    (the model looks a text up before it merges: ``ignore_merges``, as Llama 3's tokenizer does). With ``split_words``
    off, merges cross spaces, so that other frequent titles become one or two tokens. The template's parts are learned
    with the weight of the most popular title, so that they cost little.

    Args:
        titles: n titles.
        counts: int [n], how often each was liked; ordering and weights come from it.
        config: vocabulary size and whether words are split.
        template: the prompt's template; None learns titles alone.

    Raises:
        UserError: a title that contains one of the special tokens.
    """
    for title in titles:
        clash = next((token for token in SPECIAL_TOKENS if token in title), None)
        if clash is not None:
            raise UserError(f"title {title!r} contains {clash}, which the tokenizer keeps for itself: rename the item")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=config.split_words)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(titles, np.asarray(counts), template), trainer)
    if config.whole_titles:
        order = np.argsort(-np.asarray(counts), kind="stable")[: config.whole_titles]
        tokenizer = _with_whole(tokenizer, [titles[place] for place in order])
    bos_id = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos_id)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


def scratch_model(
    config: ScratchConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, seed: int
) -> LlamaForCausalLM:
    """A Llama for max_length positions with tied embeddings and random float32 weights, a function of the seed."""
    llama = scratch_config(config, len(tokenizer), max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(llama)


def scratch_config(config: ScratchConfig, vocabulary: int, max_length: int) -> LlamaConfig:
    """The Transformers config of `scratch_model` for a tokenizer with so many tokens."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        # The trainer numbers special tokens first.
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
    )


def _with_whole(tokenizer: Tokenizer, titles: Sequence[str]) -> Tokenizer:
    """The tokenizer with a token for each of the titles, where it has none yet."""
    found = json.loads(tokenizer.to_str())
    vocabulary = found["model"]["vocab"]
    for title in titles:
        written = "".join(text for text, _ in tokenizer.pre_tokenizer.pre_tokenize_str(title))
        vocabulary.setdefault(written, len(vocabulary))
    found["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(found))


def _lines(titles: Sequence[str], counts: np.ndarray, template: TemplateConfig | None) -> Iterator[str]:
    cap = max(1, min(_MAX_WEIGHT, _MAX_LINES // max(1, len(titles))))
    weights = np.clip(counts, 1, cap)
    for title, weight in zip(titles, weights, strict=True):
        for _ in range(int(weight)):
            yield title
    if template is not None:
        listed = (template.candidates_prefix,) if template.candidates else ()
        for part in (template.prefix, template.separator, template.suffix, *listed):
            for text in filter(None, part.split("{eos}")):
                for _ in range(int(weights.max(initial=1))):
                    yield text
