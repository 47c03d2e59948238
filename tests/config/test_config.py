"""Configuration: what is refused, how it is said, and what is read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from rosepo.config import Config, dump_config, load_config, located, parse_config
from rosepo.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "jobs" / "configs"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("align.bta=1", ["unknown key 'align.bta'", "did you mean 'beta'"]),
        ("algn.beta=1", ["unknown key 'algn'", "did you mean 'align'"]),
        ("model.scratch.hiden_size=64", ["did you mean 'hidden_size'"]),
        ("align.beta=0", ["align.beta", "greater than 0", "0"]),
        ("align.beta=.nan", ["align.beta", "finite"]),
        ("align.epsilon_max=0.5", ["align.epsilon_max", "less than 0.5"]),
        ("align.beta=high", ["align.beta", "valid number", "'high'"]),
        ("pairs.negatives=0", ["pairs.negatives", "greater than or equal to 1"]),
        ("pairs.strategies={selfhard: 1}", ["did you mean 'self_hard'"]),
        ("pairs.strategies={popularity: 0}", ["at least one weight above 0"]),
        ("pairs.reference=frozen", ["pairs.reference=frozen is used by the rounds after the first", "pairs.rounds"]),
        ("prepare.candidates=1", ["prepare.candidates=1"]),
        ("pairs.policy_top=9", ["pairs.policy_top is used by the strategy policy alone"]),
        ("pairs={oracle_whole: true}", ["pairs.oracle_whole is used by the strategy oracle alone"]),
        ("pairs={strategies: {policy: 1}, oracle_top: 9}", ["pairs.oracle_top is used by the strategy oracle alone"]),
        (
            "pairs={strategies: {oracle: 1}, oracle_top: 2, negatives: 3}",
            ["pairs.oracle_top=2 holds fewer", "raise it"],
        ),
        ("pairs={strategies: {policy: 1}, negatives: 51}", ["pairs.policy_top=50 holds fewer titles", "negatives=51"]),
        ("evaluate.vllm=vllm", ["evaluate.vllm is used by evaluate.engine=vllm alone"]),
        ("recommend.gpus_per_actor=2", ["recommend.gpus_per_actor=2 needs recommend.engine=vllm"]),
        ("evaluate={engine: vllm, free_generation: 9}", ["evaluate.free_generation=9", "leave one of them out"]),
        ("pairs={engine: vllm, gpus_per_actor: 2, rounds: 2}", ["gpus_per_actor=2 asks", "pairs.reference=moved"]),
        ("pairs={engine: vllm, vllm: 'http://a:b@host:1'}", ["pairs.vllm carries credentials"]),
        ("prepare.test_fraction=0.2", ["used by prepare.split=temporal alone"]),
        ("align={loss: dpo, target_min: 0.1}", ["used by align.loss=softmax alone"]),
        ("align.epsilon=none", ["align.epsilon", "'oracle', 'constant', 'shuffled', 'zero' or 'spa'"]),
        (
            "align={loss: pairwise, epsilon_value: 0.1}",
            ["align.epsilon_value is used by align.epsilon=constant or spa, not by oracle"],
        ),
        (
            "align={loss: pairwise, spa_quantile: 0.2}",
            ["align.spa_quantile is used by align.epsilon=spa, not by oracle"],
        ),
        ("align={loss: pairwise, epsilon: zero, epsilon_max: 0.1}", ["align.epsilon_max is used by", "not by zero"]),
        ("align={loss: pairwise, epsilon: spa, epsilon_max: 0.1}", ["align.epsilon_max is used by", "not by spa"]),
        (
            "align={loss: pairwise, epsilon: shuffled, epsilon_value: 0.1}",
            ["align.epsilon_value is used by", "not by shuffled"],
        ),
        ("align={loss: pairwise, epsilon: constant, epsilon_value: 0.5}", ["align.epsilon_value", "less than 0.5"]),
        ("align={loss: pairwise, epsilon: spa, spa_quantile: 1}", ["align.spa_quantile", "less than 1"]),
        (
            "align={loss: pairwise, epsilon: constant, epsilon_value: 0.1, epsilon_max: 0.2}",
            ["align.epsilon_max is not used beside align.epsilon_value"],
        ),
        (
            "align={loss: softmax, epsilon: zero}",
            ["align.epsilon is used by align.loss=pairwise alone, not by softmax"],
        ),
        (
            "align={loss: softmax, epsilon_value: 0.1}",
            ["align.epsilon_value is used by align.loss=pairwise, cdpo, spa or robust alone, not by softmax"],
        ),
        (
            "align={loss: robust, epsilon_value: 0.1, epsilon_max: 0.2}",
            ["align.epsilon_max is not used beside align.epsilon_value"],
        ),
        ("align={loss: robust, epsilon_value: 0.5}", ["align.epsilon_value", "less than 0.5"]),
        ("align.loss=orpo", ["align.loss has no 'orpo' (did you mean 'rpo'?)"]),
        ("align={loss: simpo, simpo_gamma: high}", ["align.simpo_gamma", "valid number", "'high'"]),
        ("align={loss: ada_dpo, ada_tau_max: 0}", ["align.ada_tau_max", "greater than 0"]),
        ("align.simpo_gama=1", ["unknown key 'align.simpo_gama'", "did you mean 'simpo_gamma'"]),
        ("sweep.parameters={align.simpo_gama: [1, 2]}", ["did you mean 'align.simpo_gamma'"]),
        ("align={loss: ada_dpo, ada_rho: 0.1}", ["align.ada_rho=0.1 puts every pair at align.ada_tau_min", "-0.6931"]),
        ("align={loss: ada_dpo, ada_rho: -0.7}", ["align.ada_rho=-0.7 puts every pair at align.ada_tau_max"]),
        ("align={loss: ada_dpo, ada_tau_min: 6}", ["align.ada_tau_min=6 is above align.ada_tau_max=5"]),
        ("align.sft_weight=-1", ["align.sft_weight", "greater than or equal to 0"]),
        ("model.revision=main", ["model.revision needs model.path"]),
        ("sweep.parameters={align.betta: [1, 2]}", ["did you mean 'align.beta'"]),
        ("sweep.parameters={align.beta: {low: 2, high: 1}}", ["low < high"]),
        ("sweep.parameters={align.beta: {lo: 2}}", ["sweep.parameters.align.beta.low: Field required", "'low'?"]),
        ("sweep.parameters={align.beta: 3}", ["sweep.parameters.align.beta: Input should be a valid tuple (got 3)"]),
        ("data.interactions=a.csv", ["without data.items"]),
        ("model.template.separator=''", ["separator is empty"]),
        ("model.template.chat=yes", ["model.template.chat", "'auto' or 'no'", "'yes'"]),
        (
            "model.template={chat: no, system: x}",
            ["model.template.system", "which model.template.chat=no does not use"],
        ),
        ("model.template.system=x", ["model.template.system is a message", "a model from scratch has none"]),
        ("align", ["is not section.key=value"]),
        ("align.beta=[", ["the value is not YAML"]),
    ],
)
def test_a_bad_setting_is_refused_in_words_that_name_it(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [override])
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["align={loss: pairwise, epsilon: shuffled}"],
            "align.epsilon=shuffled reads the whole table .*: use pairs.stream=false",
        ),
        (
            ["align={loss: pairwise, epsilon: constant}"],
            "align.epsilon=constant reads .*: set align.epsilon_value, or use pairs.stream",
        ),
        (["pairs.score=false"], "pairs.stream=true streams groups into align"),
    ],
)
def test_what_needs_the_whole_table_or_gives_none_to_train_on_cannot_stream(overrides: list[str], words: str) -> None:
    load_config(None, overrides)
    with pytest.raises(UserError, match=words):
        load_config(None, ["pairs.stream=true", *overrides])
    load_config(None, ["pairs.stream=true", "align={loss: pairwise, epsilon: constant, epsilon_value: 0.1}"])


@pytest.mark.parametrize(
    ("settings", "allowed", "count"),
    [
        ([], 1000, 15),
        ([], 4, 4),
        (["pairs.negatives=20"], 1000, 20),
        (["pairs={strategies: {policy: 1, popularity: 1}, policy_top: 9}"], 1000, 9),
        (["pairs={strategies: {oracle: 1}, oracle_top: 8}"], 1000, 8),
        (["prepare.candidates=5", "pairs.strategies={candidates: 1}"], 1000, 4),
        (["prepare.candidates=5"], 1000, 15),  # lists that nobody reads
    ],
)
def test_rejected_titles_left_open_are_as_many_as_every_group_can_have(
    settings: list[str], allowed: int, count: int
) -> None:
    assert load_config(None, settings).negatives(allowed) == count


def test_rows_are_trajectories_unless_prompts_list_candidates() -> None:
    listing = ["prepare.candidates=5", "model.template.candidates=true"]
    assert load_config().trajectories
    assert not load_config(None, ["align.rows=group"]).trajectories
    assert not load_config(None, listing).trajectories
    with pytest.raises(UserError, match=r"align\.row_tokens is for users' trajectories, and under"):
        load_config(None, [*listing, "align.row_tokens=512"])


def test_the_groups_of_a_user_are_the_newest_or_all() -> None:
    assert load_config().pairs.newest == 8
    assert load_config(None, ["pairs.groups_per_user=all"]).pairs.newest is None
    with pytest.raises(UserError, match=r"pairs\.groups_per_user"):
        load_config(None, ["pairs.groups_per_user=none"])


def test_a_folder_of_a_model_is_made_absolute_and_an_id_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    config = load_config(None, ["model.path=models/mine", "model.lora.rank=4"])
    assert located(config).model == config.model.model_copy(update={"path": str(tmp_path / "models" / "mine")})
    for unchanged in ([], ["model.path=someone/model"]):
        assert located(load_config(None, unchanged)) == load_config(None, unchanged)


@pytest.mark.parametrize("url", ["s3://KEY:SECRET@bucket/log.csv", "s3://KEY:SEC/RET@bucket/log.csv"])
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(None, [f"data.interactions={url}", "data.items=items.csv"])
    assert "credentials" in str(caught.value)
    assert "SEC" not in str(caught.value)


def test_yes_and_no_are_words_where_yaml_reads_truth_values() -> None:
    assert load_config(None, ["sft.gpu=no", "oracle.gpu=yes"]).sft.gpu == "no"


def test_one_weight_of_the_mixture_is_set_beside_the_others(tmp_path: Path) -> None:
    config = load_config(None, ["pairs.strategies.popularity=2", "pairs.strategies.self_hard=0"])
    assert config.pairs.strategies == {"self_hard": 0, "semantic": 1, "popularity": 2}
    (tmp_path / "c.yaml").write_text("pairs: {strategies: {semantic: 1}}")
    assert load_config(tmp_path / "c.yaml").pairs.strategies == {"semantic": 1}
    both = load_config(tmp_path / "c.yaml", ["pairs.strategies.popularity=2"])
    assert both.pairs.strategies == {"semantic": 1, "popularity": 2}


def test_a_strategy_of_ones_own_is_named_by_its_import_path() -> None:
    config = load_config(None, ["pairs.strategies={'mine.strategies:newest': 1}"])
    assert config.pairs.strategies == {"mine.strategies:newest": 1}
    with pytest.raises(UserError, match=r"did you mean 'uniform'.*or module:callable"):
        load_config(None, ["pairs.strategies={uniforms: 1}"])


def test_all_faults_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("align: {beta: -1, epsilon_mx: 0.2}\nseeed: 3\n")
    with pytest.raises(UserError) as caught:
        load_config(path)
    text = str(caught.value)
    assert text.count("\n") == 2
    assert str(path) in text


@pytest.mark.parametrize("content", ["- a\n- b\n", "align: [", "\xff"])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_config(path)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "none.yaml")


def test_overrides_win_over_the_file_and_read_as_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("align:\n  beta: 0.1\n  workers: 2\n")
    config = load_config(
        path, ["align.beta=0.7", "pairs.strategies.semantic=2", "sweep.parameters.align.beta=[0.1, 1]"]
    )
    assert (config.align.beta, config.align.workers) == (0.7, 2)
    assert config.sweep.parameters == {"align.beta": (0.1, 1)}


def test_a_dumped_configuration_reads_back_equal(tmp_path: Path) -> None:
    config = load_config(
        None, ["model.path=some/model", "model.lora.rank=4", "model.template.separator=' ; '", "seed=3"]
    )
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert dump_config(Config()).strip() == "{}"


def test_a_configuration_cannot_be_changed_after_it_was_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().align.beta = 2.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["oracle.kind=scorer"], r"oracle\.kind=scorer needs oracle\.scorer"),
        (["oracle.kind=table"], r"oracle\.kind.*'sasrec' or 'scorer'"),
        (["oracle.scorer=a:b"], r"oracle\.scorer is used by oracle\.kind=scorer alone, and oracle\.kind is sasrec"),
        (
            ["oracle={kind: scorer, scorer: a:b, folds: 2, workers: 1}"],
            r"oracle\.folds and oracle\.workers are used by oracle\.kind=sasrec alone: .*kind: scorer",
        ),
        (["oracle={kind: scorer, scorer: my_module}"], r"oracle\.scorer=my_module is not an import path"),
        (["oracle.tau=0"], r"oracle\.tau"),
    ],
)
def test_settings_of_one_kind_of_oracle_are_refused_with_another(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config(None, settings)


def test_a_section_is_replaced_as_a_whole_by_its_own_name() -> None:
    settings = ["oracle.folds=3", "oracle={kind: scorer, scorer: a:b, tau: 2}"]
    oracle = load_config(None, settings).oracle
    assert (oracle.kind, oracle.scorer, oracle.tau) == ("scorer", "a:b", 2.0)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_that_are_kept_here_resolve(path: Path) -> None:
    assert load_config(path, []).learns_whole == (path.stem == "whole")


def test_a_key_that_stands_twice_in_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("align: {beta: 0.5}\nsft: {epochs: 1}\nalign: {epochs: 2}\n")
    with pytest.raises(UserError, match=r"config\.yaml cannot be read: .*'align' stands twice"):
        load_config(path)


def test_precision_follows_from_the_device_and_the_references_from_training() -> None:
    plain = parse_config({})
    assert [plain.precision(section, True) for section in ("evaluate", "recommend")] == ["bfloat16"] * 2
    assert [plain.precision(section, False) for section in ("evaluate", "recommend")] == ["float32"] * 2
    for train in ("float32", "bfloat16"):
        config = parse_config({"align": {"precision": train}})
        assert {config.precision("pairs", gpu) for gpu in (True, False)} == {train}
    titles = parse_config({"pairs": {"score": False}})
    assert titles.precision("pairs", True) == "bfloat16"
    asked = parse_config({"evaluate": {"precision": "float32"}, "pairs": {"score": False, "precision": "float32"}})
    assert asked.precision("evaluate", True) == asked.precision("pairs", True) == "float32"
    with pytest.raises(UserError, match=r"pairs.precision=float32 is not align.precision=bfloat16.*leave pairs.prec"):
        parse_config({"align": {"precision": "bfloat16"}, "pairs": {"precision": "float32"}})
