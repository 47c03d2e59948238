from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.config import AlignConfig
from rosepo.config.auto import open_keys
from rosepo.experiments.suite import read_suites
from rosepo.utils.errors import UserError
from tests.cli.test_app import ROOT
from tests.experiments.suites import SUITE, changed, write_suite


def test_a_variant_is_its_base_with_overrides_seed_and_split(tmp_path: Path) -> None:
    asked = read_suites([write_suite(tmp_path)])
    assert [(one.data, one.variant, one.seeds) for one in asked.experiments] == [
        ("ring", "dpo", (0, 1)),
        ("ring", "cdpo", (0, 1)),
        ("ring", "more-negatives", (0, 1)),
    ]
    config = asked.experiments[1].config(7, "test", ["align.beta=0.5"])
    assert (config.seed, config.evaluate.split) == (7, "test")
    assert (config.align.loss, config.align.epsilon_value, config.align.beta) == ("cdpo", 0.1, 0.5)
    assert config.sft.learning_rate == 3e-3  # the base's


def test_a_variant_starts_from_what_it_is_like_and_null_goes_back_to_the_default(tmp_path: Path) -> None:
    variants = {
        "a": {"set": {"align.beta": 0.3, "align.learning_rate": 1e-5}},
        "b": {"like": "a", "set": {"align.beta": None, "pairs.strategies": {"uniform": 1}}},
    }
    text = changed(SUITE, variants=variants, set={"align.beta": 2.0, "align.loss": "dpo"}, comparators=[], contrasts=[])
    a, b = (one.config(0, "validation") for one in read_suites([write_suite(tmp_path, text)]).experiments)
    assert (a.align.beta, a.align.learning_rate, a.align.loss) == (0.3, 1e-5, "dpo")
    assert (b.align.beta, b.align.learning_rate, b.align.loss) == (AlignConfig().beta, 1e-5, "dpo")
    assert b.pairs.used == ("uniform",)


def test_data_sets_have_settings_of_their_own_under_those_of_variants(tmp_path: Path) -> None:
    data = {"ring": {"base": "base.yaml", "set": {"pairs.negatives": 4, "align.epochs": 0.5}}}
    asked = read_suites([write_suite(tmp_path, changed(SUITE, data=data))])
    dpo, _, more = (one.config(0, "validation") for one in asked.experiments)
    assert (dpo.pairs.negatives, dpo.align.epochs) == (4, 0.5)
    assert (more.pairs.negatives, more.align.epochs) == (3, 0.5)


def test_an_included_suite_is_part_of_the_one_that_includes_it_once(tmp_path: Path) -> None:
    first = write_suite(tmp_path)
    more = tmp_path / "more.yaml"
    more.write_text(
        "include: [suite.yaml]\n"
        "data: {ring: {base: base.yaml, seeds: [0]}}\n"
        "variants: {ipo: {like: dpo, set: {align.loss: ipo}}}\n"
        "contrasts: [{question: 'IPO or DPO?', a: ipo, b: dpo}]\n"
    )
    for paths in ([more], [first, more], [more, first]):
        asked = read_suites(paths)
        assert [*asked.variants] == ["dpo", "cdpo", "more-negatives", "ipo"]
        assert [one.seeds for one in asked.experiments] == [(0, 1), (0, 1), (0, 1), (0,)]
        assert [contrast.a for contrast in asked.contrasts] == ["cdpo", "ipo"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variant": {}}, "unknown key 'variant' (did you mean 'variants'?)"),
        ({"variants": {"dpo": {"sett": {}}}}, "unknown key 'variants.dpo.sett' (did you mean 'set'?)"),
        ({"variants": {"dpo": {"like": "dpoo"}}}, "variant dpo is like 'dpoo', which is none (did you mean 'dpo'?)"),
        ({"variants": {"dpo": {"like": "dpo"}}}, "variant dpo is like itself"),
        ({"variants": {"dpo": {}, "sft": {}}}, "'sft' is the name of a baseline"),
        ({"variants": {"dpo": {}, "A/B": {}}}, "'A/B' names a folder"),
        ({"variants": {"dpo": {"set": {"seed": 3}}}}, "variants.dpo.set: seed is given to every run by the command"),
        ({"contrasts": [{"question": "?", "a": "dpo", "b": "cpdo"}]}, "names 'cpdo', which is no variant (did you"),
        ({"contrasts": [{"question": "?", "a": "dpo:orcale", "b": "sft"}]}, "behind the colon stands sft or oracle"),
        ({"contrasts": [{"question": "?", "a": "dpo", "b": "sft", "metrics": ["mrr"]}]}, "contrasts.0.metrics.0"),
        ({"comparators": ["spo"]}, "comparators names 'spo', which is no variant (did you mean 'dpo'?)"),
        ({"test": ["dp"]}, "test names 'dp', which is no variant (did you mean 'dpo'?)"),
        ({"data": {"ring": {"base": "base.yaml", "seeds": []}}}, "data.ring.seeds"),
        ({"include": ["suite.yaml"]}, "include leads back to the file itself"),
        ({"include": ["none.yaml"]}, "none.yaml does not exist"),
    ],
)
def test_faults_of_a_suite_are_told_in_sentences(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    variants = {"dpo": {"set": {"align.loss": "dpo"}}}
    text = changed(SUITE, **{"variants": variants, "contrasts": [], "comparators": [], **changes})
    with pytest.raises(UserError) as error:
        read_suites([write_suite(tmp_path, text)])
    assert words in str(error.value)
    assert str(error.value).startswith((str(tmp_path), "suite "))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dpo' stands twice"):
        read_suites([write_suite(tmp_path, SUITE.replace("  cdpo:", "  dpo:"))])
    first = write_suite(tmp_path)
    (tmp_path / "other.yaml").write_text("variants: {dpo: {}}\n")
    with pytest.raises(UserError, match="variant 'dpo' is another suite's too"):
        read_suites([first, tmp_path / "other.yaml"])


def test_a_key_that_is_a_list_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)suite .* cannot be read: .*unhashable key"):
        read_suites([write_suite(tmp_path, SUITE + "? [a, b]\n: 1\n")])


def test_one_data_set_has_one_base(tmp_path: Path) -> None:
    first = write_suite(tmp_path)
    (tmp_path / "other.yaml").write_text("data: {ring: {base: b.yaml}}\nvariants: {x: {}}\ncomparators: []\n")
    with pytest.raises(UserError, match=r"data\.ring\.base is .*b\.yaml, and in .*suite\.yaml it is .*base\.yaml"):
        read_suites([first, tmp_path / "other.yaml"])


@pytest.mark.parametrize("name", ["essential", "extended", "recipe", "tuning", "pretrained"])
def test_the_suites_that_are_kept_here_resolve(name: str) -> None:
    asked = read_suites([ROOT / "jobs" / "configs" / "experiments" / f"{name}.yaml"])
    assert asked.experiments
    for experiment in asked.experiments:
        config = experiment.config(experiment.seeds[-1], "test")
        assert not config.sweep.trials or name == "tuning"
        assert open_keys(config) == []  # an experiment says what it is, whatever the rules become


def test_settings_that_do_not_go_together_are_told_with_suite_and_variant(tmp_path: Path) -> None:
    text = changed(SUITE, variants={"dpo": {"set": {"align.loss": "dpo", "align.epsilon_max": 0.2}}}, contrasts=[])
    (experiment,) = read_suites([write_suite(tmp_path, text)]).experiments
    with pytest.raises(UserError, match=r"suite\.yaml, variant dpo: .*align\.epsilon_max is used by"):
        experiment.config(0, "validation")
