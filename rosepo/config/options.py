"""Settings that the entries of a table bring along, those of one loss, say, beside the fields of a section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    ConfigDict,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails

from rosepo.config.base import Section


@dataclass(frozen=True)
class Option:
    """A setting that an entry of a table declares.

    Attributes:
        key: in the section, `simpo_gamma` of `align.simpo_gamma`.
        kind: what pydantic reads a value as: `float`, `Positive`, a Literal.
        default: of that kind.
        about: for people; `--help` shows it.
    """

    key: str
    kind: Any
    default: Any
    about: str

    def read(self, value: Any) -> Any:
        """The value as this kind. Raises ValidationError where it is none."""
        return TypeAdapter(self.kind).validate_python(value)


class OpenSection(Section):
    """A section that also takes the options which the entries of its table declare, under their keys.

    They are read, dumped, searched and told of as fields are; `option` gives their values. A dump holds those of the
    entries that are used, and any that was set.
    """

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str]

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Every option that the table has, by key."""
        raise NotImplementedError

    def used_options(self) -> Mapping[str, Option]:
        """Those of the entries that these settings use."""
        raise NotImplementedError

    @classmethod
    def known_keys(cls) -> list[str]:
        """All that may be set here."""
        return [*cls.model_fields, *cls.options()]

    def option(self, key: str) -> Any:
        """The value of an option, its default where it is not set."""
        return (self.__pydantic_extra__ or {}).get(key, self.options()[key].default)

    @model_validator(mode="wrap")
    @classmethod
    def _read_options(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(data, Mapping):
            return handler(data)
        options, found = cls.options(), {key: value for key, value in data.items() if key in cls.model_fields}
        faults: list[InitErrorDetails] = []
        for key in [key for key in data if key not in found]:
            try:
                found[key] = options[key].read(data[key])
            except KeyError:
                faults.append({"type": "extra_forbidden", "loc": (key,), "input": data[key]})
            except ValidationError as error:
                faults += _details(error, key)
        try:
            made = handler(found)
        except ValidationError as error:
            faults = [*_details(error), *faults]
        if faults:  # all of them are told at once
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return made

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        made: dict[str, Any] = handler(self)
        if info.exclude_unset:
            return made
        return made | {key: self.option(key) for key in self.used_options()}


def _details(error: ValidationError, *where: str) -> list[InitErrorDetails]:
    """The faults of an error, as those of what stands at `where`."""
    return [
        {"type": fault["type"], "loc": (*where, *fault["loc"]), "input": fault["input"], "ctx": fault.get("ctx", {})}
        for fault in error.errors()
    ]
