"""Configurations from YAML files and dotted ``--set`` overrides, with faults told in sentences."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rosepo.config.auto import RULES
from rosepo.config.base import Section
from rosepo.config.pairs import PairsConfig
from rosepo.config.root import Config
from rosepo.utils.errors import UserError

SectionT = TypeVar("SectionT", bound=Section)


def load_config(
    path: str | Path | None = None, overrides: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> Config:
    """The configuration of a YAML file (defaults where None), with `settings` (dotted key to value) and above them
    ``section.key=value`` overrides, whose values are read as YAML.

    Raises:
        UserError: a file that cannot be read, an unknown key (naming the nearest known one), a value of the wrong type
            or outside its range, or rules that join keys.
    """
    tree = read_yaml(Path(path), "config file") if path is not None else {}
    for key in RULES:
        _forget_auto(tree, key.split("."))
    for key, value in (settings or {}).items():
        _assign(tree, key.split("."), value, key)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {override!r} is not section.key=value")
        try:
            _assign(tree, key.strip().split("."), yaml.safe_load(text), f"--set {override!r}")
        except yaml.YAMLError as error:
            raise UserError(f"--set {override!r}: the value is not YAML ({error})") from error
    return parse_config(tree, source=str(path) if path is not None else "--set")


def replaced(config: Config, settings: Mapping[str, Any], source: str) -> Config:
    """The configuration with `settings` (dotted key to value, as `load_config` takes them) in place of its own.

    Raises:
        UserError: they do not go together; told with their `source`.
    """
    tree = config.model_dump(mode="json", exclude_unset=True)
    for key, value in settings.items():
        _assign(tree, key.split("."), value, source)
    return parse_config(tree, source)


def parse_config(tree: Mapping[str, Any], source: str = "config") -> Config:
    """Validate a nested mapping. Raises UserError with every fault on its own line."""
    return parse(Config, tree, source)


def parse(kind: type[SectionT], tree: Mapping[str, Any], source: str) -> SectionT:
    """The same of any section."""
    try:
        return kind.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error


def located(config: Config) -> Config:
    """The configuration with a local `model.path` made absolute."""
    if config.model.path is None:
        return config
    model = config.model.model_copy(update={"path": folder_or_id(config.model.path)})
    return config.model_copy(update={"model": model})


def folder_or_id(model: str) -> str:
    """The absolute path of a model's folder; the id of one on the hub as it is."""
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.exists() else model


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one: only keys that were set."""
    return yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, kind: str) -> dict[str, Any]:
    """The mapping in a YAML file; empty where it holds nothing.

    Args:
        kind: what to call the file in messages.

    Raises:
        UserError: it cannot be read, holds no mapping, or a key stands twice in it.
    """
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=_OnceLoader)
    except FileNotFoundError:
        raise UserError(f"{kind} {path} does not exist") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{kind} {path} cannot be read: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{kind} {path} must hold a mapping, not a {type(tree).__name__}")
    return tree


class _OnceLoader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error: its first value would be lost in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key.value}' stands twice: rename one of them or take it out", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _assign(tree: dict[str, Any], keys: list[str], value: Any, told: str) -> None:
    node = tree
    if value == "auto" and ".".join(keys) in RULES:
        value = None
    # Keys of sweep.parameters hold a dot themselves: everything behind it is one key.
    if keys[:2] == ["sweep", "parameters"] and len(keys) > 2:
        keys = [*keys[:2], ".".join(keys[2:])]
    if keys[:2] == ["pairs", "strategies"] and len(keys) > 2:
        # One weight of a mixture is set beside the others, not instead of them.
        pairs = tree.get("pairs") or {}
        tree["pairs"] = {"strategies": dict(PairsConfig().strategies)} | pairs
    if value is None and not _means_null(keys):  # back to the default: what a kept file has set can be taken away again
        for key in keys[:-1]:
            node = node.get(key) or {}
        node.pop(keys[-1], None)
        return
    for key in keys[:-1]:
        child = node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"{told}: {key} holds a value, not keys")
        node = child
    node[keys[-1]] = value


def _forget_auto(tree: Any, keys: Sequence[str]) -> None:
    """Take away a setting that is `auto`: it follows from the data where nobody gives it."""
    for key in keys[:-1]:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, dict) and tree.get(keys[-1]) == "auto":
        del tree[keys[-1]]


def _means_null(keys: Sequence[str]) -> bool:
    """Whether null is a value of its own for a setting, and not its default: where there is another default, be it one
    that follows from the data."""
    section: Any = Config
    for key in keys[:-1]:
        field = section.model_fields.get(key)
        kinds = () if field is None else (field.annotation, *get_args(field.annotation))
        section = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)
        if section is None:
            return False
    field = section.model_fields.get(keys[-1])
    if field is None or type(None) not in get_args(field.annotation):
        return False
    return isinstance(field.default, str) or ".".join(keys) in RULES


def _explain(error: ValidationError) -> list[str]:
    """A sentence a fault."""
    lines = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"] if not str(part).startswith("-"))  # tags of unions
        if fault["type"] == "default_factory_not_called":
            continue  # a default that depends on another key: there is a fault in that section, which is told
        if fault["type"] == "unknown_key":
            lines.append(f"unknown key '{where}'{fault['msg'].removeprefix('is unknown')}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            value = fault.get("input")
            shown = "" if isinstance(value, (dict, BaseModel)) else f" (got {value!r})"
            lines.append(f"{where}: {message}{shown}" if where and fault["type"] != "value_error" else message)
    return lines
