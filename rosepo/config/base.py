"""What every section of the configuration is made of."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

Fraction = Annotated[float, Field(gt=0.0, lt=1.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0.0, lt=1.0, allow_inf_nan=False)]


def word(value: Any) -> Any:
    """YAML reads an unquoted yes or no as true or false."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


Precision = Literal["auto", "float32", "bfloat16"]
Gpu = Annotated[Literal["auto", "yes", "no"], BeforeValidator(word)]


@dataclass(frozen=True)
class Option:
    """A setting that an entry of a table declares, one of a loss, say, beside the fields of a section.

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


class Section(BaseModel):
    """Base of every section: immutable, closed to unknown keys, documented field by field."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, use_attribute_docstrings=True)

    @classmethod
    def options(cls) -> Mapping[str, Option]:
        """Settings beside the fields, by key; see `OpenSection`."""
        return {}

    @classmethod
    def known_keys(cls) -> list[str]:
        """All that may be set here."""
        return [*cls.model_fields, *cls.options()]

    def faults(self) -> Iterator[str]:
        """What does not go together in these settings, a sentence each with its remedy; the first one is told."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _read(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Read options and refuse unknown keys, so that these faults are told together with those of the fields."""
        if not isinstance(data, Mapping):
            return handler(data)
        options, settings = cls.options(), {key: value for key, value in data.items() if key in cls.model_fields}
        faults: list[InitErrorDetails] = []
        for key in [key for key in data if key not in settings]:
            if key in options:
                try:
                    settings[key] = options[key].read(data[key])
                except ValidationError as error:
                    faults += _details(error, key)
            else:
                told = {"nearest": nearest(str(key), cls.known_keys())}
                kind = PydanticCustomError("unknown_key", "is unknown{nearest}", told)
                faults.append({"type": kind, "loc": (key,), "input": data[key]})
        try:
            section = handler(settings)
        except ValidationError as error:
            faults = [*_details(error), *faults]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return section


class OpenSection(Section):
    """A section that also takes the options which the entries of its table declare, under their keys.

    They are read, dumped, searched and told of as fields are; `option` gives their values. A dump holds those of the
    entries that are used, and any that was set.
    """

    model_config = ConfigDict(extra="allow")
    section: ClassVar[str]

    def used_options(self) -> Mapping[str, Option]:
        """Those of the entries that these settings use."""
        raise NotImplementedError

    def option(self, key: str) -> Any:
        """The value of an option, its default where it is not set."""
        return (self.__pydantic_extra__ or {}).get(key, self.options()[key].default)

    @model_serializer(mode="wrap")
    def _dump(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        dumped: dict[str, Any] = handler(self)
        return dumped if info.exclude_unset else dumped | {key: self.option(key) for key in self.used_options()}


def _details(error: ValidationError, *where: str) -> list[InitErrorDetails]:
    """The faults of an error, as those of what stands at `where`."""
    return [
        {
            "type": PydanticCustomError(fault["type"], "{told}", {"told": fault["msg"]}),  # type: ignore[arg-type]
            "loc": (*where, *fault["loc"]),
            "input": fault["input"],
        }
        for fault in error.errors()
    ]


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
    """GPUs for the actors: where the cluster has them, always, or never."""
    gpus_per_actor: Count = 1
    """GPUs that one actor takes where it takes any. More than one is for models that one GPU cannot hold, and needs
    engine=vllm, which divides every layer among them (tensor parallel)."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """Who runs the language models that answer: `transformers`, in the actor, or `vllm`, as a server that the actor
    asks. Both search the catalogue for a model's best titles; scores differ by what their precision rounds."""
    vllm: str = "vllm"
    """With engine=vllm: the command that starts vLLM 0.32 or later, best by its path in an environment of its own; each
    actor starts a server. Or the http address of a server that runs, which serves the model that is asked
    (docs/method.md)."""
    precision: Precision = "auto"
    """Of language models, which are held and run in it: `auto` is bfloat16 on GPUs and float32 on CPUs. Logits that
    rank titles are float32 either way."""

    def engine_faults(self, section: str) -> Iterator[str]:
        """Settings of the engine that do not belong together; for `faults`."""
        if self.engine != "vllm" and "vllm" in self.model_fields_set:
            yield f"{section}.vllm is used by {section}.engine=vllm alone: set that too, or leave it out"
        if self.engine != "vllm" and self.gpus_per_actor > 1:
            yield (
                f"{section}.gpus_per_actor={self.gpus_per_actor} needs {section}.engine=vllm, which divides a model"
                " among GPUs: set that too, or leave it at 1"
            )
        refuse_credentials(f"{section}.vllm", self.vllm)
