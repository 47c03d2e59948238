"""Agreement with TRL's trainers where both have the loss; TRL comes with the extra `bench`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rosepo.objectives.likelihood import chosen_nll
from tests.helpers import tiny_model, tiny_tokenizer
from tests.objectives.named import called

pytest.importorskip("trl", reason="TRL comes with the extra `bench`")
# Set before that part of TRL is imported, which warns of itself otherwise.
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

PAIRS = [
    {"prompt": "Film 1, Film 2, ", "chosen": "Film 3", "rejected": "Film 14 and more"},
    {"prompt": "Film 5, ", "chosen": "Film 6 the second", "rejected": "Film 2"},
    {"prompt": "Film 9, Film 8, ", "chosen": "Film 7", "rejected": "Film 17"},
    {"prompt": "Film 12, ", "chosen": "Film 11 at last", "rejected": "Film 10 again"},
]
BETA = 0.3


@dataclass(frozen=True)
class Sides:
    """One batch of pairs: as TRL's trainer has it, and as the objectives read it."""

    trainer: Any
    batch: dict[str, Tensor]
    policy: Tensor
    inputs: dict[str, Tensor]
    weight: Tensor
    """Of the policy's output layer: what gradients are compared on."""

    def trl(self, *losses: str, **settings: Any) -> Tensor:
        """TRL's own loss, with other settings than the trainer was made with."""
        trainer = self.trainer
        trainer.loss_types, trainer.loss_weights = list(losses), [1.0] * len(losses)
        trainer.beta, trainer.label_smoothing = BETA, settings.get("label_smoothing", 0.0)
        return trainer.compute_loss(trainer.model, self.batch)

    def ours(self, name: str, **options: Any) -> Tensor:
        """The mean of our loss; `epsilon` is the same for every pair."""
        epsilon = options.pop("epsilon", 0.0)
        inputs = self.inputs | {"epsilon": torch.full_like(self.policy[:, 1:], epsilon)}
        return called(name, self.policy, inputs, BETA, **options)[0].mean()

    def assert_equal(self, trl: Tensor, ours: Tensor) -> None:
        assert ours.item() == pytest.approx(trl.item(), rel=1e-5)
        found, expected = (torch.autograd.grad(loss, self.weight, retain_graph=True)[0] for loss in (ours, trl))
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """A `DPOTrainer` of two random models, on a batch of pairs of titles of different lengths."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, reference = tiny_model(seed=1), tiny_model(seed=2)
    trainer = DPOTrainer(
        policy,
        reference,
        DPOConfig(
            str(tmp_path_factory.mktemp("dpo")),
            per_device_train_batch_size=len(PAIRS),
            gradient_checkpointing=False,
            use_cpu=True,
            bf16=False,
            report_to=[],
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=tiny_tokenizer(),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        ref_logps = logps_of(reference, batch)
    counts = batch["completion_mask"].sum(1).view(2, -1).T
    inputs = {"ref_logps": ref_logps, "counts": counts}
    return Sides(trainer, batch, logps_of(policy, batch), inputs, policy.lm_head.weight)


def logps_of(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Log-probabilities [G, 2] of TRL's batch, the chosen titles' lines first, computed in plain Transformers."""
    ids, mask = batch["input_ids"], batch["completion_mask"][:, 1:]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    tokens = logits.log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (tokens * mask).sum(1).view(2, -1).T


def test_dpo_is_trl_s_sigmoid_loss(sides):
    assert sides.inputs["counts"].unique().numel() > 2
    sides.assert_equal(sides.trl("sigmoid"), sides.ours("dpo"))


def test_robust_dpo_is_trl_s(sides):
    sides.assert_equal(sides.trl("robust", label_smoothing=0.2), sides.ours("robust", epsilon=0.2))


def test_ipo_of_means_over_tokens_is_trl_s(sides):
    sides.assert_equal(sides.trl("ipo"), sides.ours("ipo", average=True))


def test_rpo_is_trl_s_with_a_mean_over_titles_in_place_of_tokens(sides):
    tokens = sides.inputs["counts"][:, 0].sum()
    ours = sides.ours("rpo") + chosen_nll(sides.policy).sum() / tokens
    sides.assert_equal(sides.trl("sigmoid", "sft"), ours)


@pytest.fixture(scope="module")
def reference_free(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """TRL's `CPOTrainer`, which has the losses without a reference."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    config = CPOConfig(
        str(tmp_path_factory.mktemp("cpo")), loss_type="simpo", beta=BETA, simpo_gamma=0.4, use_cpu=True, bf16=False,
        report_to=[],
    )  # fmt: skip
    return CPOTrainer(tiny_model(), config, train_dataset=Dataset.from_list(PAIRS), processing_class=tiny_tokenizer())


def test_simpo_is_trl_s(sides, reference_free):
    means = sides.policy / sides.inputs["counts"]
    trl, chosen, rejected = reference_free.cpo_loss(means[:, 0], means[:, 1])
    sides.assert_equal(trl.mean(), sides.ours("simpo", gamma=0.4))
    counts = {"counts": sides.inputs["counts"]}
    metrics = called("simpo", sides.policy, counts, BETA, gamma=0.4)[1]
    assert torch.allclose(metrics["reward_chosen"], chosen)
    assert torch.allclose(metrics["reward_rejected"][:, 0], rejected)


def test_conservative_dpo_is_trl_s_label_smoothing(sides, reference_free, monkeypatch):
    """Where TRL still has it: without a reference, that is, of log-ratios."""
    monkeypatch.setattr(reference_free, "loss_type", "sigmoid")
    monkeypatch.setattr(reference_free, "label_smoothing", 0.2)
    ratios = sides.policy - sides.inputs["ref_logps"]
    sides.assert_equal(reference_free.cpo_loss(ratios[:, 0], ratios[:, 1])[0].mean(), sides.ours("cdpo", epsilon=0.2))
