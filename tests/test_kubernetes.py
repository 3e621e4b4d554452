"""The Kubernetes manifests of the documentation and of the examples conform to the schemas of Kubernetes."""

import json
import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.utilities.templating import apply_values

TOP = Path(__file__).parents[1]
VERSION = "1.34"
PAGES = [TOP / "docs" / "how-to" / name for name in ("kubernetes.md", "operations.md")]
FOLDER = TOP / "examples" / "kubernetes"
MANIFESTS: list[dict[str, Any]] = [
    document
    for text in (
        *(block for page in PAGES for block in re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)),
        *(path.read_text() for path in sorted(FOLDER.glob("*.yaml"))),
    )
    for document in yaml.safe_load_all(text)
    if "apiVersion" in document
]


def render_job(**values: str) -> Any:
    """Return the job that Prefect makes from the template of the work pool."""
    template = json.loads((FOLDER / "base-job-template.json").read_text())
    variables = template["variables"]["properties"].items()
    defaults = {name: one["default"] for name, one in variables if one.get("default") is not None}
    names = {"name": "shard-1", "command": "prefect flow-run execute", "labels": {}, "annotations": {}}
    return apply_values(template["job_configuration"], {**defaults, **names, **values})


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda one: f"{one['kind']}-{one['metadata']['name']}")
def test_a_manifest_conforms_to_the_schema_of_kubernetes(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_the_schemas_refuse_a_misspelled_field() -> None:
    manifest = next(one for one in MANIFESTS if one["kind"] == "Deployment")
    spec = {**manifest["spec"], "replica": 1}

    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate({**manifest, "spec": spec}, VERSION, strict=True)


def test_the_job_of_the_work_pool_has_no_root_and_no_secret_in_its_template() -> None:
    manifest = render_job(image="registry.example/dist:1")["job_manifest"]
    # Prefect's worker makes a list of the arguments and of the environment.
    container = manifest["spec"]["template"]["spec"]["containers"][0]
    container["args"] = container["args"].split()
    container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]

    kubernetes_validate.validate(manifest, VERSION, strict=True)
    assert manifest["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"] is True
    assert container["image"] == "registry.example/dist:1"
    assert container["envFrom"] == [{"secretRef": {"name": "dist-worker"}}]
