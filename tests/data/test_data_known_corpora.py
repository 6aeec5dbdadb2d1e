"""The cleaning that the guide to known corpora shows can be asked for, and each corpus has its publication."""

import re
from pathlib import Path

import pytest
import yaml

from lmworks.data.corpus.prepare import PrepareConfig

GUIDE = (Path(__file__).resolve().parents[2] / "docs/guides/known-corpora.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda text: re.search(r"runs/(\S+)", text)[1])
def test_every_recipe_can_be_asked_for(recipe):
    values = yaml.safe_load(recipe)
    config = PrepareConfig.parse(values)
    assert config.dedup.to_dict().items() >= values["dedup"].items()
    assert [str(one.path) for one in config.inputs] == [one["path"] for one in values["inputs"]]


def test_every_figure_has_its_publication():
    rows = [line for line in GUIDE.splitlines() if line.startswith("| ") and not line.startswith("| corpus")]
    named = {number for row in rows for number in re.findall(r"\[(\d+)\]", row.split("|")[1])}
    listed = set(re.findall(r"\[(\d+)\]", GUIDE.partition("## Publications")[2]))
    assert all(re.search(r"\[\d+\]", row.split("|")[1]) for row in rows)
    assert named <= listed
    assert {str(number) for number in range(1, len(listed) + 1)} == listed
