"""Engines in the manifest: what was built, for what, and which one this host can load.

The record is read before anything of the library is touched: a plan for another library, version or
device is refused by its name here, not by a crash inside a deserializer.
"""

import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amlr.errors import BundleError, PlanMismatchError

GRAPHS = ("text", "image", "fusion")
Shape = tuple[int, ...]
Shapes = dict[str, tuple[Shape, Shape, Shape]]


def host_platform() -> str:
    """Operating system and machine, e.g. `linux-x86_64`: plans are not portable across them."""
    return f"{platform.system()}-{platform.machine()}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEngine:
    """One engine file.

    Attributes:
        file: Name inside the bundle.
        key: Digest of everything that went into it; equal keys need no second build.
        bytes: Size of the plan.
        build_s: Seconds its build took.
        shapes: Per optimization profile, min, opt and max shape of each input.
        audit: Layers by type, float32 layers, output types, fused attentions.
    """

    file: str
    key: str
    bytes: int
    build_s: float
    shapes: tuple[Shapes, ...]
    audit: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRecord:
    """The engines of one variant for one library.

    Attributes:
        library: `tensorrt` or `tensorrt-rtx`.
        version: Full version of the library.
        sms: Architectures it was built for.
        precision: Precision of the graphs.
        variant: Name of the variant whose graphs were built.
        platform: From `host_platform`.
        options: Compatibility options of the build.
        graphs: By graph name.
        buckets: Steps and units of the shapes to capture, ascending; from the planner.
    """

    library: str
    version: str
    sms: tuple[int, ...]
    precision: str
    variant: str
    platform: str
    options: dict[str, Any]
    graphs: dict[str, GraphEngine]
    buckets: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "EngineRecord":
        """Rebuild from the manifest.

        Raises:
            BundleError: A field is missing or wrong.
        """
        try:
            graphs = {str(name): _graph(engine) for name, engine in values["graphs"].items()}
            return cls(
                library=str(values["library"]),
                version=str(values["version"]),
                sms=tuple(int(sm) for sm in values["sms"]),
                precision=str(values["precision"]),
                variant=str(values["variant"]),
                platform=str(values["platform"]),
                options=dict(values["options"]),
                graphs=graphs,
                buckets=tuple((int(t), int(u)) for t, u in values.get("buckets", ())),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(
                f"an engine entry of the manifest is wrong ({error!r}); build the engines again"
            ) from error

    def runs_on(self, sm: int) -> bool:
        """Whether a device of this architecture can load the plans."""
        if self.options.get("hardware", "none") == "ampere-plus":
            return sm >= 80
        return sm in self.sms

    def accepts(self, version: str) -> bool:
        """Whether this library version can load the plans."""
        if version == self.version:
            return True
        newer = version_numbers(version) >= version_numbers(self.version)
        return newer and bool(self.options.get("version_compatible"))

    @property
    def target(self) -> str:
        """For people: `tensorrt-rtx 1.7.1.116 for SM 8.0, 8.6`."""
        sms = ", ".join(f"{sm / 10:.1f}" for sm in self.sms)
        return f"{self.library} {self.version} for SM {sms} on {self.platform}"


def _graph(values: Mapping[str, Any]) -> GraphEngine:
    shapes = tuple(
        {
            str(name): (_shape(low), _shape(usual), _shape(high))
            for name, (low, usual, high) in profile.items()
        }
        for profile in values["shapes"]
    )
    return GraphEngine(
        file=str(values["file"]),
        key=str(values["key"]),
        bytes=int(values["bytes"]),
        build_s=float(values["build_s"]),
        shapes=shapes,
        audit=dict(values.get("audit", {})),
    )


def _shape(values: Sequence[Any]) -> Shape:
    return tuple(int(size) for size in values)


def version_numbers(version: str) -> tuple[int, ...]:
    """A version to compare: `1.7.1.116` as its four numbers."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def rebuild_command(bundle: str, library: str) -> str:
    """The command that makes fitting engines; needs neither checkpoint nor torch."""
    return f"amlr-export --from {bundle} --target {library}"


def choose_engine(
    records: Sequence[EngineRecord],
    *,
    library: str,
    version: str,
    precision: str,
    sm: int,
    bundle: str,
) -> EngineRecord:
    """The record this host can load.

    Args:
        records: Of the manifest.
        library: The family that was asked for.
        version: Installed version.
        precision: Of the variant in use.
        sm: Architecture of the device.
        bundle: Path of the bundle, for the rebuild command.

    Raises:
        PlanMismatchError: None fits; names what is there, what is needed, and the command.
    """
    fix = f"rebuild with: {rebuild_command(bundle, library)}"
    needed = f"{library} {version}, {precision}, SM {sm / 10:.1f}, {host_platform()}"
    mine = [r for r in records if r.library == library and r.precision == precision]
    if not mine:
        found = "; ".join(f"{r.target} ({r.precision})" for r in records) or "no engines"
        raise PlanMismatchError(f"the bundle holds {found}; needed: {needed}; {fix}")
    checks: tuple[tuple[str, Callable[[EngineRecord], bool]], ...] = (
        ("platform", lambda r: r.platform == host_platform()),
        ("device", lambda r: r.runs_on(sm)),
        ("version", lambda r: r.accepts(version)),
    )
    for what, fits in checks:
        left = [record for record in mine if fits(record)]
        if not left:
            found = "; ".join(record.target for record in mine)
            raise PlanMismatchError(
                f"the engines are for another {what}: found {found}; needed: {needed}; {fix}"
            )
        mine = left
    missing = set(GRAPHS) - set(mine[-1].graphs)
    if missing:
        raise PlanMismatchError(f"the engines lack graphs {sorted(missing)}; {fix}")
    return mine[-1]


def describe_engine(record: EngineRecord) -> Iterator[str]:
    """Lines of `amlr-inspect` for the engines of one library."""
    yield f"engine: {record.target}, {record.precision}"
    for name, graph in record.graphs.items():
        kinds = ", ".join(f"{n} {kind}" for kind, n in graph.audit.get("dtypes", {}).items())
        yield (
            f"  {name}: {graph.bytes / 1e6:.1f} MB, built in {graph.build_s:.1f} s, "
            f"{graph.audit.get('layers', '?')} layers ({kinds}); "
            f"float32: {len(graph.audit.get('float32', ()))}"
        )
        if graph.audit.get("fused_attentions") is not None:
            fused, attentions = graph.audit["fused_attentions"], graph.audit["attentions"]
            yield f"    {fused} of {attentions} attentions fused"
        for number, shapes in enumerate(graph.shapes):
            for tensor, (low, usual, high) in shapes.items():
                row = " / ".join("x".join(map(str, shape)) for shape in (low, usual, high))
                yield f"    profile {number} {tensor}: {row}"
