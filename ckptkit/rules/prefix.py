"""The two rules that need no file: `strip:PREFIX` and `add:PREFIX`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ckptkit.core.errors import CkptError
from ckptkit.core.graph import TensorGraph


@dataclass(frozen=True, slots=True)
class Rewrite:
    """What applying rules gave: the new graph, and old name → new name for every name that changed."""

    graph: TensorGraph
    trace: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Take `prefix` off every name that begins with it (`strip`), or put it before every name (`add`)."""

    verb: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> "Prefix":
        """`strip:module.` or `add:backbone.`. Raises CkptError `rule-invalid` for anything else."""
        verb, colon, prefix = text.partition(":")
        if verb not in ("strip", "add") or not colon or not prefix:
            raise CkptError(
                "rule-invalid",
                "a rule is strip:PREFIX or add:PREFIX",
                text,
                "for example --rules strip:module.",
            )
        return cls(verb, prefix)

    def apply(self, graph: TensorGraph) -> Rewrite:
        """Rename. Raises CkptError `rule-unmatched` when no name has the prefix, `name-collision`."""
        names = {name: new for name in graph if (new := self.new_name(name)) != name}
        if not names:
            heads = sorted({name.split(".")[0] for name in graph})[:5]
            raise CkptError(
                "rule-unmatched",
                f"no tensor's name begins with {self.prefix!r}",
                graph.origin.path,
                f"names begin with {', '.join(heads)}",
            )
        if "" in names.values():
            raise CkptError("name-collision", "a tensor would be left without a name", self.prefix)
        return Rewrite(replace(graph.rename(names), metadata=self._metadata(graph.metadata)), names)

    def new_name(self, name: str) -> str:
        """The name under the rule; itself where the rule does not apply."""
        return self.prefix + name if self.verb == "add" else name.removeprefix(self.prefix)

    def _metadata(self, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Module paths in a state dict's `_metadata` move with the names ("" is the root module)."""
        try:
            old = json.loads(metadata.get("_metadata", ""))
        except ValueError:  # absent, or somebody's own text
            return metadata
        if not isinstance(old, dict):
            return metadata
        new = {self.new_name(f"{path}.").rstrip("."): facts for path, facts in old.items()}
        return {**metadata, "_metadata": json.dumps(new, separators=(",", ":"))}
