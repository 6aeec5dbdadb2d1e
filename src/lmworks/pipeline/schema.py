"""The JSON Schema of recipe files, for editors: stages, their fields and what the fields mean. Knows no editor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmworks.pipeline.recipe import Recipe
from lmworks.pipeline.stages import STAGES, Stage


def recipe_schema(stages: Mapping[str, Stage] = STAGES) -> dict[str, Any]:
    """One schema in which a step's `with` has the fields of its stage.

    `output` is never required: the runner supplies it.
    """
    schema = Recipe.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs")
    step = definitions.pop("Step")
    step["properties"]["stage"] = {**step["properties"]["stage"], "enum": list(stages)}
    step["allOf"] = []
    for name, stage in stages.items():
        fields = stage.config_class().model_json_schema(mode="validation", ref_template="#/$defs/{model}")
        for key, value in fields.pop("$defs", {}).items():
            clash = definitions.setdefault(key, value)
            assert clash == value, f"two configurations are called {key}"
        fields["required"] = [field for field in fields.get("required", []) if field != "output"]
        title = fields["title"]
        assert title not in definitions, f"two configurations are called {title}"
        definitions[title] = fields
        step["allOf"].append(
            {
                "if": {"properties": {"stage": {"const": name}}},
                "then": {"properties": {"with": {"$ref": f"#/$defs/{title}"}}},
            }
        )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "lmworks recipe", **schema,
            "$defs": {"Step": step, **dict(sorted(definitions.items()))}}  # fmt: skip
