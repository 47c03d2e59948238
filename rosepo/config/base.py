"""What every section of the configuration is made of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]


def word(value: Any) -> Any:
    """YAML reads an unquoted yes or no as true or false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


Gpu = Annotated[Literal["auto", "yes", "no"], BeforeValidator(word)]


class Section(BaseModel):
    """Base of every section: immutable, closed to unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    def faults(self) -> Iterator[str]:
        """What does not go together in these settings, a sentence each with its remedy; the first one is told."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a sentence about an unknown name: the known one that it resembles most, or all of them."""
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if match:
        return f" (did you mean '{match[0]}'?)"
    return f" (known: {', '.join(known)})" if known else ""


def refuse_credentials(key: str, location: str) -> None:
    """Raise ValueError where a URL carries a name or a password: settings are written to manifests and reports."""
    _, scheme, rest = location.partition("://")
    if scheme and re.match(r"[^/@]+@|[^:/@]*:.*@", rest):
        raise ValueError(f"{key} carries credentials in its URL: give them by environment or profile instead")


class ActorsConfig(Section):
    """What the stages that run Ray Data actors share."""

    actors: Count = 1
    cpus_per_actor: Positive = 1.0
    gpu: Gpu = "auto"
    """One GPU an actor: where the cluster has them, always, or never."""
