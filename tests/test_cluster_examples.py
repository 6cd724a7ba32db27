"""The cluster of examples/docker-compose.yml, the Job of examples/kubernetes: that they hold together."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_embed._images import folders
from clip_embed.cli import main

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "examples" / "docker-compose.yml"
JOB = ROOT / "examples" / "kubernetes" / "ingest.yaml"


@pytest.fixture
def services() -> Any:  # noqa: ANN401
    """The services of the compose file."""
    return yaml.safe_load(COMPOSE.read_text("utf-8"))["services"]


@pytest.fixture
def job() -> Any:  # noqa: ANN401
    """The Job."""
    return yaml.safe_load(JOB.read_text("utf-8"))


def test_the_qdrant_servers_are_one_cluster(services: Any) -> None:  # noqa: ANN401
    """Each says its own name, all but the first ask the first, and each has a volume of its own."""
    cluster = {name: each for name, each in services.items() if each.get("profiles") == ["cluster"]}
    assert list(cluster) == ["qdrant-1", "qdrant-2", "qdrant-3"]
    for name, each in cluster.items():
        options = dict(re.findall(r"--(\w+) http://([\w-]+):6335", each["command"]))
        assert options.pop("uri") == name
        assert options == ({} if name == "qdrant-1" else {"bootstrap": "qdrant-1"})
        assert each["image"] == services["qdrant"]["image"]
        assert each["environment"]["QDRANT__CLUSTER__ENABLED"] == "true"
        assert each["volumes"] == [f"{name}:/qdrant/storage"]


def test_ports_and_ray_are_out_of_reach(services: Any) -> None:  # noqa: ANN401
    """No two services publish one port, and Ray, which runs what it is sent, none."""
    ports = [port.rsplit(":", 1)[0] for each in services.values() for port in each.get("ports", ())]
    assert len(set(ports)) == len(ports)
    assert not any(each.get("ports") for name, each in services.items() if name.startswith("ray-"))


def test_the_commands_in_the_comment_are_of_what_there_is(services: Any) -> None:  # noqa: ANN401
    """Profiles, services, the program and the collection that it fills."""
    lines = [line[1:].strip() for line in COMPOSE.read_text("utf-8").splitlines() if line.startswith("#   ")]
    up, fill, search = (shlex.split(line) for line in lines[-3:])
    profiles = {each for service in services.values() for each in service.get("profiles", ())}
    assert {word for option, word in pairwise(up) if option == "--profile"} <= profiles
    assert up[-1].partition("=")[0] in services
    at = fill.index("exec")
    service, python, program, photos, url, collection = fill[at + 1 :]
    assert services[service]["volumes"][0].endswith(f":{photos}:ro")
    assert (python, url) == ("python", "http://qdrant-1:6333")
    assert "COPY . /src\n" in services[service]["build"]["dockerfile_inline"]
    assert (ROOT / Path(program).relative_to("/src")).is_file()
    found = main.commands["search"].make_context("search", search[2:]).params
    assert found["collection"] == collection
    port = found["where"].rsplit(":", 1)[1]
    assert f"127.0.0.1:{port}:6333" in services["qdrant-1"]["ports"]


def test_the_pods_of_the_job_share_all_photos(job: Any) -> None:  # noqa: ANN401
    """There are as many shares as pods, the command parses, and what it reads is mounted."""
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    names = {variable["name"]: variable for variable in container["env"]}
    place = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert names["INDEX"]["valueFrom"]["fieldRef"]["fieldPath"] == place
    words = [word.replace("$(INDEX)", "7") for word in container["command"]]
    params = main.commands["ingest"].make_context("ingest", words[2:]).params
    assert params["shard"] == f"7/{spec['completions']}"
    assert spec["completionMode"] == "Indexed"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts.values()) == {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert params["source"] in mounts
    assert any(names["CLIP_EMBED_MODEL"]["value"].startswith(f"{mount}/") for mount in mounts)


def test_the_job_is_valid(job: Any) -> None:  # noqa: ANN401
    """By the schema of Kubernetes, where it is installed: the env engines has it."""
    validate = pytest.importorskip("kubernetes_validate", reason="needs it: the env engines has it")
    validate.validate(job, validate.latest_version(), strict=True)
    job["spec"]["completion"] = job["spec"].pop("completions")
    with pytest.raises(validate.ValidationError):
        validate.validate(job, validate.latest_version(), strict=True)


def test_the_ray_job_takes_what_ingest_takes() -> None:
    """Its list of suffixes is that of `clip-embed ingest`: nothing in a folder is left out in silence."""
    source = (ROOT / "examples" / "ray_ingest.py").read_text("utf-8")
    listed = source[source.index("SUFFIXES") : source.index("def main")]
    assert set(re.findall(r'"(\.\w+)"', listed)) == folders._SUFFIXES
