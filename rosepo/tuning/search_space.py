"""The settings that a sweep tries: drawn from the seed alone, so that every trial is known before one starts."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from rosepo.config import Config, RangeConfig, dump_config, replaced
from rosepo.utils.errors import UserError


def trial_settings(config: Config) -> list[dict[str, Any]]:
    """Dotted key to value for every trial.

    Lists alone, with `trials` no fewer than their combinations: the full grid. Else `trials` draws: a random one of a
    list, uniform in a range (on a log scale where it says so); no combination twice where that can be.
    """
    sweep, parameters = config.sweep, config.sweep_parameters
    lists = [values for values in parameters.values() if not isinstance(values, RangeConfig)]
    names = list(parameters)
    if len(lists) == len(names) and math.prod(len(values) for values in lists) <= sweep.n_trials:
        return [dict(zip(names, combination)) for combination in itertools.product(*lists)]
    rng = np.random.default_rng([config.seed, 0x5EE9])
    drawn: list[dict[str, Any]] = []
    for _ in range(100 * sweep.n_trials):
        settings = {name: _draw(values, rng) for name, values in parameters.items()}
        if settings not in drawn:
            drawn.append(settings)
        if len(drawn) == sweep.n_trials:
            break
    return drawn


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The configuration with dotted keys replaced.

    Raises:
        UserError: the combination is not allowed; names the trial's settings.
    """
    try:
        return replaced(config, settings, source=f"sweep trial {settings}")
    except UserError as error:
        raise UserError(f"{error}; change sweep.parameters, or leave the sweep out") from error


def check_space(config: Config) -> None:
    """Refuse, before any trial, values that a trial could not be run with.

    Raises:
        UserError: naming the key and the value.
    """
    for name, values in config.sweep_parameters.items():
        if not isinstance(values, RangeConfig) and not values:
            raise UserError(f"sweep.parameters.{name} is an empty list: give values to try")
    for settings in trial_settings(config):
        with_settings(config, settings)


def best_config(config: Config, settings: dict[str, Any]) -> str:
    """YAML of the whole configuration with a trial's settings, for `rosepo align --config`."""
    shown = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"# The best trial of a sweep: {shown}\n{dump_config(with_settings(config, settings))}"


def _draw(values: tuple[Any, ...] | RangeConfig, rng: np.random.Generator) -> Any:
    if not isinstance(values, RangeConfig):
        return values[int(rng.integers(len(values)))]
    if values.log:
        return float(np.exp(rng.uniform(np.log(values.low), np.log(values.high))))
    return float(rng.uniform(values.low, values.high))
