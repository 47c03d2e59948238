"""The strategies of a mixture, made by name: those of the table, and one's own by import path."""

from __future__ import annotations

from rosepo.config import STRATEGIES
from rosepo.data.catalogue import Catalogue
from rosepo.sampling.strategies.protocol import Strategy, StrategyInputs
from rosepo.utils.errors import UserError
from rosepo.utils.imports import find_callable


def make_strategies(inputs: StrategyInputs) -> dict[str, Strategy]:
    """Every strategy that the mixture of `inputs.pairs` uses, by its name.

    Raises:
        UserError: see `own_strategy`.
        ValueError: one asks for what is not there.
    """
    return {
        name: find_callable(STRATEGIES[name].maker, f"pairs.strategies.{name}")(inputs)
        if name in STRATEGIES
        else own_strategy(name, inputs.catalogue)
        for name in inputs.pairs.used
    }


def own_strategy(path: str, catalogue: Catalogue) -> Strategy:
    """The strategy that `module:callable` makes for a catalogue.

    Raises:
        UserError: no such module or callable, or it does not return a strategy.
    """
    maker = find_callable(path, "pairs.strategies")
    try:
        made: Strategy = maker(catalogue)
    except Exception as error:
        raise UserError(
            f"pairs.strategies: {path} cannot be called with a catalogue: {type(error).__name__}: {error}"
        ) from error
    if not callable(made):
        raise UserError(f"pairs.strategies: {path} returns {type(made).__name__} and not a strategy")
    return made
