"""Language models that are not the run's own: another run's model folders, and any causal LM or adapter as it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rosepo.config import EvaluateConfig, ModelConfig
from rosepo.config.evaluation import ExternalSystem
from rosepo.data.catalogue import Catalogue
from rosepo.data.readers.sources import Source, find_sources
from rosepo.utils.console import echo
from rosepo.utils.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rosepo.data.prompts import PromptBuilder
    from rosepo.lm.model.model_folder import Recommender
    from rosepo.lm.serving.server import Serving

SAME_DATA = "give one of a run on the same data"


def load_external(
    path: str,
    catalogue: Catalogue,
    prompts: ModelConfig,
    max_history: int,
    precision: str = "float32",
    serving: Serving | None = None,
) -> Recommender:
    """A model that ranks a catalogue, in eval mode on the CPU, its weights in a precision; or served.

    A folder that rosepo wrote brings its own template and lengths; any other model is read with those of `prompts`, as
    far as it has positions.

    Raises:
        UserError: not a model that can be loaded, one that was trained on another catalogue, or one that cannot spell
            the titles that were added to it.
    """
    import torch

    from rosepo.lm.model.loading import load_policy, load_tokenizer
    from rosepo.lm.model.model_folder import Recommender, check_catalogue, load_recommender

    folder, dtype = Path(path).expanduser(), getattr(torch, precision)
    if _is_rosepos(folder):
        check_catalogue(folder, catalogue.own, SAME_DATA)
        return load_recommender(folder, dtype, catalogue, serving)
    tokenizer = load_tokenizer(path)
    if serving is not None:
        builder = _builder(path, _config_of(path), catalogue, prompts, tokenizer)
        return Recommender(serving(path, builder.max_length), tokenizer, builder, catalogue, max_history)
    model = load_policy(path, dtype=dtype)
    rows = len(model.get_input_embeddings().weight)
    if len(tokenizer) > rows:
        raise UserError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; they do not belong"
            " together"
        )
    builder = _builder(path, model.config, catalogue, prompts, tokenizer)
    return Recommender(model, tokenizer, builder, catalogue, max_history)


def check_external_model(system: ExternalSystem, catalogue: Catalogue, prompts: ModelConfig) -> None:
    """Refuse a model that could not rank a catalogue, from its config and tokenizer alone; no weights are loaded.

    Raises:
        UserError: with the key that names it; a model that answers out of candidates where the run lists none.
    """
    from rosepo.lm.model.adapters import check_adapter
    from rosepo.lm.model.added_titles import check_added
    from rosepo.lm.model.loading import load_tokenizer
    from rosepo.lm.model.model_folder import check_catalogue
    from rosepo.lm.model.model_source import find_source
    from rosepo.lm.model.policy import max_positions

    folder = Path(system.location).expanduser()
    try:
        if _is_rosepos(folder):
            check_catalogue(folder, catalogue.own, SAME_DATA)
            _check_prompts(system, folder, prompts)
            if catalogue.added:
                check_added(folder, catalogue)
            return
        source, settings = find_source(system.location), _config_of(system.location)
        if source.adapter:
            check_adapter(source, settings)
        _builder(system.location, settings, catalogue, prompts, load_tokenizer(system.location))
    except UserError as error:
        raise UserError(str(error).replace("model.path", system.key)) from error
    positions = max_positions(settings)
    if positions is not None and positions < prompts.max_length:
        echo(f"  {system.name}: prompts of at most {positions} tokens, its positions, instead of model.max_length="
            f"{prompts.max_length}")  # fmt: skip


def _check_prompts(system: ExternalSystem, folder: Path, prompts: ModelConfig) -> None:
    """Refuse a model of rosepo that needs candidates where the run has none; say where it is the other way round."""
    from rosepo.lm.model.model_folder import read_settings

    listing = bool(read_settings(folder)["template"].get("candidates"))
    if listing and not prompts.template.candidates:
        raise UserError(
            f"the model in {folder} answers out of candidates that its prompts list (model.template.candidates=true), "
            "and this run lists none: give a model without, or evaluate it in a run whose prompts list them"
        )
    if prompts.template.candidates and not listing:
        echo(f"  {system.name}: its prompts list no candidates, so it ranks them, and answers freely without them")


def external_files(evaluate: EvaluateConfig) -> dict[str, Source]:
    """The files behind `evaluate.models`, `evaluate.predictions` and `evaluate.add_items`, by name; a hub id stands for
    itself.

    Raises:
        UserError: predictions or items that are not there.
    """
    sources = [source for system in evaluate.external.values() for source in sources_of(system)]
    if evaluate.add_items is not None:
        sources += find_sources(evaluate.add_items, "auto", "evaluate.add_items")
    return {source.name: source for source in sources}


def sources_of(system: ExternalSystem) -> list[Source]:
    """The files behind a system; none behind a hub id."""
    if system.kind == "predictions":
        return find_sources(system.location, "auto", system.key)
    folder = Path(system.location).expanduser()
    endings = (".json", ".safetensors", ".parquet", ".model", ".txt", ".jinja")  # vocabularies, merges: text
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Source(str(path.absolute()), "") for path in files if path.suffix in endings and path.name[0] != "_"]


def _builder(
    path: str, settings: Any, catalogue: Catalogue, prompts: ModelConfig, tokenizer: PreTrainedTokenizerBase
) -> PromptBuilder:
    """The prompts of a model of that config, no longer than its positions."""
    from rosepo.data.prompts import PromptBuilder
    from rosepo.lm.model.policy import max_positions

    positions = max_positions(settings)
    length = prompts.max_length if positions is None else min(prompts.max_length, positions)
    try:
        return PromptBuilder(tokenizer, catalogue.titles, prompts.template, length)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _config_of(path: str) -> Any:
    """The config of a model, or of the one under an adapter."""
    from rosepo.lm.model.adapters import adapter_base
    from rosepo.lm.model.loading import load_model_config
    from rosepo.lm.model.model_source import find_source

    source = find_source(path)
    return load_model_config(find_source(*adapter_base(source)) if source.adapter else source)


def _is_rosepos(folder: Path) -> bool:
    from rosepo.lm.model.quantized import SETTINGS

    return (folder / SETTINGS).is_file()
