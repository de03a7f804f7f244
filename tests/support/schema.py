"""Which JSON schema do the tests of structured output use, and what does it mean without a library?"""

import json
from collections.abc import Mapping
from types import MappingProxyType

TAGS = ("the", "worker", "é")
SCHEMA: Mapping[str, object] = MappingProxyType(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": list(TAGS)}, "maxItems": 3},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)


def is_compact_json_of_the_schema(text: str) -> bool:
    value = json.loads(text)
    name, age, tags = value.pop("name"), value.pop("age"), value.pop("tags")
    return (
        not value
        and (isinstance(name, str) and len(name) <= 6)
        and (type(age) is int and 0 <= age <= 120)
        and (isinstance(tags, list) and len(tags) <= 3 and set(tags) <= set(TAGS))
        and not any(space in text.replace(json.dumps(name, ensure_ascii=False), "") for space in " \n\t\r")
    )
