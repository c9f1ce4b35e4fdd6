"""The JSON Schema of rule files, for editors: made from the tables that the reader itself goes by."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ckptkit.core.dtypes import DTYPES
from ckptkit.rules.joins import JOINS, SPLITS
from ckptkit.rules.language import COMMON, KEYS
from ckptkit.rules.operations import OPERATIONS, WORDS

Schema = dict[str, Any]

FLAG: Schema = {"enum": [True, False, "true", "false"]}
# Editors read YAML with types, and a name may look like a number or a truth.
TEXT: Schema = {"type": ["string", "number", "boolean", "null"]}
NUMBER: Schema = {"type": ["number", "string"]}


def ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def either(*options: Schema) -> Schema:
    return {"anyOf": list(options)}


def listed(item: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": item, **more}


def fields(properties: Mapping[str, Schema], required: Iterable[str] = (), **more: Any) -> Schema:
    found: Schema = {"type": "object", "additionalProperties": False, "properties": dict(properties)}
    return found | {"required": list(required)} | more


# Kinds of parameters of operations, and of the keys of rules that are no operations.
KINDS: Mapping[str, Schema] = {
    "int": ref("expression"),
    "ints": ref("expressions"),
    "sizes": either({"const": "equal"}, ref("expressions")),
    "number": NUMBER,
    "word": {},  # listed in WORDS
    "name": {"type": "string"},
    "flag": FLAG,
    "dtype": {"enum": sorted(DTYPES)},
    "ops": either(ref("op"), listed(ref("op"), minItems=1)),
}
RULE: Mapping[str, Schema] = {
    "from": ref("sides"),
    "ops": ref("ops"),
    "each": ref("ops"),
    "value": NUMBER | {"description": "a number, arange, causal or eye"},
    "shape": ref("expressions"),
    "dtype": KINDS["dtype"],
    "over": {"type": "object", "additionalProperties": ref("expression")},
    "scope": fields({"from": {"type": "string"}, "to": {"type": "string"}}),
    "rules": ref("rules"),
    "when": ref("expressions"),
    "optional": FLAG,
    "note": {"type": "string"},
}
REQUIRED: Mapping[str, tuple[str, ...]] = {"from": ("to",), "tie": ("to",), "scope": ("rules",)}


def arguments(takes: Mapping[str, str], **more: Any) -> Schema:
    words = {key: {"enum": list(WORDS[key])} for key in takes if key in WORDS}
    properties = {key: KINDS[kind.rstrip("?")] for key, kind in takes.items()} | words
    return fields(properties, [key for key, kind in takes.items() if not kind.endswith("?")], **more)


def operation(name: str) -> Schema:
    row = OPERATIONS[name]
    value = arguments(row.takes)
    if row.short:
        value = either(value, KINDS[row.takes[row.short].rstrip("?")])
    return fields({name: value}, [name], description=f"{row.about} ({row.exact})")


def rule(kind: str) -> Schema:
    properties = {}
    for key in (kind, *KEYS[kind], *COMMON):
        if key in JOINS:
            properties[key] = arguments(JOINS[key].takes, description=JOINS[key].about)
        elif key in SPLITS:
            properties[key] = arguments(SPLITS[key])
        elif key == "to" and kind == "from":
            properties[key] = ref("sides")
        else:
            properties[key] = RULE.get(key, ref("template"))
    found = fields(properties, [kind, *REQUIRED.get(kind, ())])
    if kind == "fill":
        found["anyOf"] = [{"required": ["shape"]}, {"required": ["like"]}]
    return found


def schema() -> Schema:
    plain = [name for name, row in OPERATIONS.items() if all(k.endswith("?") for k in row.takes.values())]
    texts = either(listed(TEXT), {"type": "object", "additionalProperties": TEXT})
    names = either({"type": "string"}, listed({"type": "string"}))
    let = either(ref("expression"), listed(ref("expression")))
    top: Mapping[str, Schema] = {
        "ckptkit-rules": {"enum": [1, "1"]},
        "about": {"type": "string"},
        "let": {"type": "object", "additionalProperties": let},
        "tables": {"type": "object", "additionalProperties": texts},
        "unwrap": names,
        "keep_others": FLAG,
        "optional": FLAG,
        "done": ref("expression"),
        "rules": ref("rules"),
    }
    template = "a name with holes: {i}, {x:a|b}, {x:*}, {rest:**}, {i+1}, {x|a=b}"
    side = fields({"name": ref("template"), "ops": ref("ops")}, ["name"])
    definitions: Mapping[str, Schema] = {
        "template": TEXT | {"description": template},
        "expression": {"type": ["string", "integer", "boolean"]},
        "expressions": either(ref("expression"), listed(ref("expression"))),
        "ops": either(ref("op"), listed(ref("op"))),
        "op": either({"enum": plain, "description": "without arguments"}, *map(operation, OPERATIONS)),
        "side": either(ref("template"), side),
        "sides": either(ref("side"), listed(ref("side"), minItems=1)),
        "rules": listed(ref("rule")),
        "rule": {"oneOf": [rule(kind) for kind in KEYS]},
    }  # fmt: skip
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "ckptkit rule file"}
    return head | fields(top, ["ckptkit-rules"]) | {"$defs": dict(definitions)}


def text() -> str:
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
