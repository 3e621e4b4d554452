"""Parameters of flows in the forms of Prefect: titles, descriptions and order."""

from importlib import import_module
from typing import Any

import pytest

FIRST = {
    "check": ["Configuration", "Content store", "Repair"],
    "copy": ["Source", "Target", "Content store", "Platforms"],
    "fetch": ["Images", "Content store", "Platforms"],
    "gc": ["Content store", "Grace period", "Dry run"],
    "mirror": ["Configuration", "Content store", "Dry run"],
    "pull": ["Image", "Directory", "Content store", "Platform"],
    "push": ["Image", "Target", "Content store"],
    "seed": ["Images", "Targets", "Platforms", "Dry run", "Content store"],
    "verify": ["Content store", "Repair"],
}


def schema(flow: str) -> dict[str, Any]:
    document: dict[str, Any] = getattr(import_module(f"prefect_dist.flows.{flow}"), flow).parameters.model_dump()
    return document


@pytest.mark.parametrize("flow", FIRST)
def test_each_parameter_has_a_title_and_a_description_and_important_parameters_come_first(flow: str) -> None:
    found = sorted(schema(flow)["properties"].values(), key=lambda one: one["position"])
    assert [one["title"] for one in found][: len(FIRST[flow])] == FIRST[flow]
    for one in found:
        assert one["title"][0].isupper()
        assert "_" not in one["title"]
        assert one["description"]


@pytest.mark.parametrize("flow", sorted(FIRST.keys() - {"gc"}))
def test_the_parameter_network_is_optional_and_each_of_its_settings_has_a_description(flow: str) -> None:
    document = schema(flow)
    assert document["properties"]["network"]["default"] is None
    settings = document["definitions"]["Network"]["properties"]
    assert next(iter(settings)) == "credentials"
    assert all(one["description"] and one["title"] for one in settings.values())
