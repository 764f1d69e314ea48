"""Arguments of the Ray Serve application, and what is built of them."""

import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from amlr.errors import InputError
from amlr.runtime.options import EngineOptions
from amlr.serving.ray.arguments import FleetArguments
from ray_library import require_ray

HASH = "0" * 64
ROOT = Path(__file__).parents[2]


def built(**values: Any) -> Any:
    """The deployment that `build` makes."""
    require_ray()
    from amlr.serving.ray import build

    return build(FleetArguments.parse(values))._bound_deployment


def test_values_of_a_command_line_are_parsed() -> None:
    arguments = FleetArguments.parse(
        {"engine": "s3://b/amlr.plan", "replicas": "2", "gpus": "0.5", "pin": "false"}
    )
    assert (arguments.replicas, arguments.gpus, arguments.pin) == (2, 0.5, False)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "engine"),
        ({"engine": ""}, "engine"),
        ({"engine": "x", "replica": 2}, "replica"),
        ({"engine": "x", "replicas": 0}, "replicas"),
        ({"engine": "x", "cores": "many"}, "cores"),
        ({"engine": "x", "replicas": 3, "max_replicas": 2}, "at least replicas"),
        ({"engine": "x", "manifest_sha256": "abc"}, "manifest_sha256"),
        ({"engine": "x", "image": "sometimes"}, "when-needed"),
        ({"engine": "x", "answer_cache": -1}, "answer_cache"),
    ],
)
def test_wrong_arguments_are_named_in_one_line(values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as failed:
        FleetArguments.parse(values)
    assert "\n" not in str(failed.value)


def test_ongoing_requests_follow_from_the_batch_budget() -> None:
    plain = FleetArguments(engine="x")
    assert plain.max_ongoing_requests == 2 * 16
    assert FleetArguments(engine="x", cores=4).max_ongoing_requests == 2 * 4 * 16
    # A token budget that holds fewer posts than `batch_posts` counts instead.
    assert FleetArguments(engine="x", batch_tokens=128).max_ongoing_requests == 2 * 4
    assert FleetArguments(engine="x", batch_tokens=1).max_ongoing_requests == 2
    settings = FleetArguments(engine="x", cores=3, wait_ms=7).server_settings(("key",))
    assert (settings.batch.workers, settings.batch.max_wait_s) == (3, 0.007)
    assert settings.api_keys == ("key",)


def test_the_page_names_every_argument() -> None:
    page = (ROOT / "docs" / "howto" / "ray.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    named = set(re.findall("`([a-z0-9_]+)`", "".join(row.split("|")[1] for row in rows)))
    assert named == set(FleetArguments.model_fields)


def test_every_option_of_the_engine_is_an_argument(tmp_path: Path) -> None:
    wanted = EngineOptions(
        provider="onnxruntime",
        precision="fp32",
        threads=1,
        image_cache_mb=7.5,
        cache_dir=tmp_path / "engines",
        max_changed=0.01,
        check="text",
        answer_cache=9,
        image="when-needed",
        trust_file_times=True,
    )
    values = asdict(wanted) | {"engine": "x", "cache_dir": tmp_path}
    del values["threads"]  # each worker calls the engine from one
    assert FleetArguments.parse(values).engine_options == wanted


def test_a_fixed_fleet() -> None:
    deployment = built(engine="s3://b/amlr.plan", manifest_sha256=HASH, replicas=2, cores=3)
    assert deployment.num_replicas == 2
    assert deployment.ray_actor_options == {"num_cpus": 3, "num_gpus": 0.0}
    assert deployment.user_config == {"engine": "s3://b/amlr.plan", "manifest_sha256": HASH}
    assert deployment.max_ongoing_requests == 2 * 3 * 16
    config = deployment._deployment_config
    assert config.autoscaling_config is None
    assert config.graceful_shutdown_timeout_s == 35.0


def test_a_fleet_that_follows_the_queue() -> None:
    config = built(engine="s3://b/x", replicas=2, max_replicas=6, gpus=1)._deployment_config
    scaling = config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (2, 6)
    # Below what a replica may hold, or demand beyond a batch would never show.
    assert scaling.target_ongoing_requests == config.max_ongoing_requests / 2


def test_replicas_get_a_folder_by_its_whole_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    assert FleetArguments(engine="models/a").choice.engine == "/models/a"
    assert FleetArguments(engine="gs://models/a").choice.engine == "gs://models/a"


def test_app_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    require_ray()
    import amlr.serving.ray as fleet

    monkeypatch.delenv("AMLR_ENGINE", raising=False)
    with pytest.raises(InputError, match="AMLR_ENGINE"):
        _ = fleet.app
    monkeypatch.setenv("AMLR_ENGINE", "s3://b/x")
    monkeypatch.setenv("AMLR_REPLICAS", "3")
    assert fleet.app._bound_deployment.num_replicas == 3


def test_without_ray_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "import amlr.serving.ray as fleet\n"
        "try: fleet.build(fleet.FleetArguments(engine='x'))\n"
        "except ImportError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 'pip install "amlr[ray]"' in said.stdout


def test_a_folder_named_ray_hides_nothing() -> None:
    """`import ray` within this package is the library, also from the project's root."""
    require_ray()
    code = "import amlr.serving.ray, ray; print(ray.__file__)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert "site-packages" in said.stdout


def test_the_example_for_kubernetes_names_what_exists() -> None:
    require_ray()
    from ray.serve.schema import ServeDeploySchema

    from amlr.serving.ray.deployment import DEPLOYMENT
    from amlr.serving.ray.proxy import CALLBACK, VARIABLE

    document = yaml.safe_load((ROOT / "deploy/kuberay.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayService")
    config = ServeDeploySchema.model_validate(yaml.safe_load(document["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "amlr.serving.ray:build"
    FleetArguments.parse(application.args)
    (deployment,) = application.deployments
    assert deployment.name == DEPLOYMENT
    # An operator changes the bundle here, where no replica is restarted by it.
    assert isinstance(deployment.user_config, dict)
    assert set(deployment.user_config) == {"engine", "manifest_sha256"}
    cluster = document["spec"]["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert {"name": VARIABLE, "value": CALLBACK} in container["env"]
        assert {"requests", "limits"} == set(container["resources"])
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
