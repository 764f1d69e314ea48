"""The builder's enterprise path, on TensorRT-RTX's builder behind the names of 10.16 and of 11.4.

Enterprise TensorRT needs a GPU to build. Here its names are enforced (anything else raises) and the
real parser and builder of TensorRT-RTX do the work; timing cache and compatibility are recorded.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amlr.errors import BackendUnavailableError, ExportError
from amlr.export.options import ExportOptions
from amlr.export.tensorrt.audit import fused_attentions
from amlr.export.tensorrt.builder import Plan, build_plan
from amlr.runtime.tensorrt_library import TensorRT, load_tensorrt

TABLE = json.loads((Path(__file__).parent / "tensorrt_api.json").read_text())


class Strict:
    """Passes on to a real object only names that the table lists for its class."""

    def __init__(self, owner: str, real: Any, version: str) -> None:
        self.__dict__.update(_owner=owner, _real=real, _names=set(TABLE[version][owner] or ()))

    def __getattr__(self, name: str) -> Any:
        if name not in self._names:
            raise AttributeError(f"{self._owner} of this version has no {name}")
        return getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._names:
            raise AttributeError(f"{self._owner} of this version has no {name}")
        setattr(self._real, name, value)


LEVELS = ("builder_optimization_level", "max_aux_streams")


class Cache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"+"


class Config(Strict):
    def create_timing_cache(self, data: bytes) -> Cache:
        self._real_log.append(("timing cache", data))
        return Cache(data)

    def set_timing_cache(self, cache: Cache, ignore_mismatch: bool) -> bool:
        self._real_log.append(("set", ignore_mismatch))
        return True

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in LEVELS:
            assert getattr(self._real, name) == value
            self._real_log.append((name, value))

    def set_flag(self, flag: Any) -> None:
        self._real_log.append(("flag", flag.name))


class Builder(Strict):
    def create_builder_config(self) -> Config:
        config = Config("IBuilderConfig", self._real.create_builder_config(), self._version)
        config.__dict__["_real_log"] = self._log
        return config

    def build_serialized_network(self, network: Any, config: Config) -> Any:
        config._real.num_compute_capabilities = 1
        config._real.set_compute_capability(self._capability, 0)
        return self._real.build_serialized_network(network, config._real)


def _library(version: str) -> tuple[TensorRT, list[Any]]:
    rtx = pytest.importorskip("tensorrt_rtx", reason="pip install tensorrt-rtx")
    log: list[Any] = []

    class Api:
        __version__ = version

        def __getattr__(self, name: str) -> Any:
            if TABLE[version].get(name, ()) is None:
                raise AttributeError(f"this version has no {name}")
            return getattr(rtx, name)

        def Builder(self, logger: Any) -> Builder:  # noqa: N802
            builder = Builder("Builder", rtx.Builder(logger), version)
            builder.__dict__.update(
                _log=log, _version=version, _capability=rtx.ComputeCapability.SM89
            )
            return builder

    return load_tensorrt("tensorrt", Api()), log


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    made = helper.make_tensor_value_info
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")],
            "g",
            [made("x", TensorProto.FLOAT, ["B", 4])],
            [made("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones((4, 4), np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, str(tmp_path / "g.onnx"))
    return tmp_path / "g.onnx"


def _build(library: TensorRT, path: Path, options: ExportOptions) -> Plan:
    return build_plan(
        library,
        path,
        graph="g",
        shapes=[{"x": ((1, 4), (2, 4), (8, 4))}],
        precision="fp32",
        options=options,
    )


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_builds_with_the_names_of_both_majors(version: str, graph: Path, tmp_path: Path) -> None:
    library, log = _library(version)
    cache = tmp_path / "caches" / "timing.cache"
    options = ExportOptions(
        hardware="ampere-plus", version_compatible=True, strip_weights=True, timing_cache=cache
    )
    assert _build(library, graph, options).data
    assert log == [
        ("flag", "VERSION_COMPATIBLE"),
        ("flag", "STRIP_PLAN"),
        ("timing cache", b""),
        ("set", False),
    ]
    assert cache.read_bytes() == b"+"
    log.clear()
    _build(library, graph, ExportOptions(timing_cache=cache))
    assert not [entry for entry in log if entry[0] in LEVELS]
    assert ("timing cache", b"+") in log
    assert cache.read_bytes() == b"++"


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_levels_reach_the_builder_and_the_key(version: str, graph: Path) -> None:
    library, log = _library(version)
    options = ExportOptions(optimization_level=5, aux_streams=0)
    assert _build(library, graph, options).data
    assert [entry for entry in log if entry[0] in LEVELS] == [
        ("builder_optimization_level", 5),
        ("max_aux_streams", 0),
    ]
    assert options.build_choices() != ExportOptions().build_choices()
    # Keys of engines that were built before there were such options.
    assert set(ExportOptions().build_choices()) == {
        "sms", "hardware", "version_compatible", "strip_weights",
    }  # fmt: skip


def test_builder_that_cannot_start_names_the_other_target(graph: Path) -> None:
    library, _ = _library("11.4.0.106")

    class Broken:
        __version__ = "11.4.0.106"
        ILogger = library.api.ILogger

        def Builder(self, logger: Any) -> Any:  # noqa: N802
            raise TypeError("pybind11::init(): factory function returned nullptr")

    broken = load_tensorrt("tensorrt", Broken())
    with pytest.raises(ExportError, match="--target tensorrt-rtx, which builds anywhere"):
        _build(broken, graph, ExportOptions())


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0.106"])
def test_the_inspector_tells_which_attentions_are_one_kernel(version: str) -> None:
    """The layers of a real engine's first and second profile, and of one that is not detailed."""
    library, _ = _library(version)
    one = {"Name": "_gemm_mha_v2_myl0_7", "LayerType": "kgen", "TacticName": "_gemm_mha_v2_0x1e"}
    other = {"Name": "__myl_ResMul_myl0_8", "LayerType": "kgen", "Metadata": "[ONNX Layer: mha/q]"}
    again = {"Name": "_gemm_mha_v2_myl0_7 [profile 1]", "LayerType": "kgen"}

    class Inspector:
        def __init__(self, layers: bytes) -> None:
            self.layers = layers

        def get_engine_information(self, kind: Any) -> str:
            assert kind.name == "JSON"
            return json.dumps({"Layers": json.loads(self.layers), "Bindings": []})

    class Engine:
        def __init__(self, layers: bytes) -> None:
            self.layers = layers

        def create_engine_inspector(self) -> Strict:
            return Strict("EngineInspector", Inspector(self.layers), version)

    class Runtime:
        engine_host_code_allowed = False

        def deserialize_cuda_engine(self, data: bytes) -> Any:
            assert self.engine_host_code_allowed
            return Strict("ICudaEngine", Engine(data), version) if data else None

    library.api.__dict__["Runtime"] = lambda logger: Strict("Runtime", Runtime(), version)
    cases: list[tuple[list[Any], int | None]] = [
        ([one, other, one, again, again], 2),
        ([other], 0),
        (["_gemm_mha_v2_myl0_7"], None),
        ([], None),
    ]
    for layers, fused in cases:
        assert fused_attentions(library, json.dumps(layers).encode(), 2) == fused
    assert fused_attentions(library, b"", 1) is None


def test_old_library_is_refused() -> None:
    class Old:
        __version__ = "10.9.0"

    with pytest.raises(BackendUnavailableError, match=r"10\.9\.0 is installed, 10\.13 or newer"):
        load_tensorrt("tensorrt", Old())
