"""YAML files that people write: what they say, and on which line, so that every mistake can be shown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from metering.errors import InvalidError, Issue

__all__ = ["YamlFile", "read_yaml"]


@dataclass(slots=True)
class YamlFile:
    """What the file says, as JSON would have it, with every scalar a text (so that `no` may name a model);
    and the line of each JSON path."""

    path: Path
    document: Any = None
    lines: dict[str, int] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)

    def value_of(self, node: yaml.Node, path: str) -> Any:
        self.lines[path] = node.start_mark.line + 1
        match node:
            case yaml.MappingNode():
                return self._mapping(node, path)
            case yaml.SequenceNode():
                return [self.value_of(one, f"{path}[{i}]") for i, one in enumerate(node.value)]
            case _:
                return None if node.tag == "tag:yaml.org,2002:null" else node.value

    def _mapping(self, node: yaml.MappingNode, path: str) -> dict[str, Any]:
        """YAML's own readers keep the last of several equal names, and say nothing."""
        found: dict[str, Any] = {}
        for key, value in node.value:
            name, place = str(key.value), f"{path}.{key.value}"
            if name in found:
                hint = "Drop one of them."
                self.issues.append(
                    Issue(code="duplicate", message="it is there twice", field=place, hint=hint)
                )
            found[name] = self.value_of(value, place)
        return found

    def message(self, issues: list[Issue]) -> str:
        """One line for one problem; more of them below each other, in the order of the file."""
        said = [
            f"line {self._line(issue.field)}, {issue.field}: {issue.message}. {issue.hint}".rstrip(". ")
            for issue in sorted(issues, key=lambda issue: self._line(issue.field))
        ]
        if len(said) == 1:
            return f"{self.path}, {said[0]}"
        return f"{self.path} has {len(said)} problems:\n  " + "\n  ".join(said)

    def _line(self, place: str) -> int:
        """The line of the nearest thing that is there."""
        while place not in self.lines and place != "$":
            place = place[: max(place.rfind("."), place.rfind("["))]
        return self.lines.get(place, 1)


def read_yaml(path: Path, *, name: str, hint: str) -> YamlFile:
    """Raises InvalidError, in one line: the file, called `name`, can't be read, or is no YAML."""
    file = YamlFile(path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        file.document = file.value_of(node, "$") if node else None
    except OSError as error:
        raise InvalidError(f"can't read {name} {path}: {error.strerror}; {hint}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        said = " ".join(str(error).split()) or "it contains itself"
        raise InvalidError(f"{path} is not YAML in UTF-8: {said}") from None
    return file
