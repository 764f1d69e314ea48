"""The report of a run as typed records; `bench.json` is these, and its schema comes from them.

Unknown values are None. A field with a default may be missing in a report that is read.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge

ENGINE_PREFIX = "amlr-"
SCHEMA_VERSION = 1
Count = Annotated[int, Ge(0)]
Figure = Annotated[float, Ge(0)] | None
CacheState = Literal["cold", "warm", "repeated"]
Span = tuple[int, int, str]
Bin = tuple[int, float | None, float | None]


@dataclass(slots=True, kw_only=True)
class MachineRecord:
    """What the figures were measured on; `memory_gb` is in GiB, `load_before` the load average."""

    cpu: str | None
    cores: int | None
    memory_gb: float | None
    system: str | None
    python: str
    packages: dict[str, str]
    vendor: str | None = None
    family: str | None = None
    features: list[str] = field(default_factory=list)
    load_before: float | None = None


@dataclass(slots=True, kw_only=True)
class ChangeRecord:
    """One post whose entities differ.

    Attributes:
        missing: Entities of the eager model that the engine lacks.
        added: Entities that only the engine has.
        margin: How much better the eager answer is than its best rival; None if there is none.
        first_diverging: First output that is off by more than the tolerance, or "decoder".
        undecidable: Whether the margin is below float32 noise.
        errors: Largest absolute error of each output on this post.
    """

    id: str
    text: str
    missing: list[Span]
    added: list[Span]
    margin: float | None
    first_diverging: str
    undecidable: bool = False
    errors: dict[str, Figure] = field(default_factory=dict)

    @property
    def entities(self) -> int:
        """Changed entities; a changed label or boundary counts once."""
        return max(len(self.missing), len(self.added))


@dataclass(slots=True, kw_only=True)
class F1Record:
    """F1 of the labelled posts, of the eager model and of the engine."""

    posts: Count
    entities: Count
    eager: float
    engine: float


@dataclass(slots=True, kw_only=True)
class HeldRecord:
    """The posts that served no calibration.

    Attributes:
        change_bound: Share of posts that may still change, at 95 %, where none did.
        stages: Posts by the precision that their answer names.
    """

    posts: Count
    entities: Count
    changed_entities: Count
    changed_posts: Count
    change_bound: float | None
    stages: dict[str, Count] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class TierParity:
    """One tier of the engine compared with the eager model.

    Attributes:
        entities: Entities of the eager model.
        changed_entities: Entities that differ on posts with a clear answer.
        max_abs_error: Of each raw output; None where it is not finite.
        tolerance: Largest error allowed; None judges by entities alone.
        failed_posts: Posts that failed on one side only.
        undecidable_posts: Posts whose eager answer leads by less than float32 noise.
        undecidable_changed_entities: Entities that differ on those.
        promised: Whether the tier is said to give the eager entities; others are not judged.
        changes: The first of the changed posts.
    """

    verdict: Literal["pass", "fail"]
    posts: Count
    entities: Count
    changed_entities: Count
    max_abs_error: dict[str, Figure]
    backend: str = ""
    precision: str = ""
    tolerance: Figure = None
    reason: str = ""
    failed_posts: Count = 0
    undecidable_posts: Count = 0
    undecidable_changed_entities: Count = 0
    smallest_margin: float | None = None
    promised: bool = True
    changed_posts: Count = 0
    f1: F1Record | None = None
    held: HeldRecord | None = None
    changes: list[ChangeRecord] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ParityRecord(TierParity):
    """The tier that the run is judged by, and all of them."""

    tiers: list[TierParity] = field(default_factory=list)

    @property
    def all_tiers(self) -> list[TierParity]:
        """All tiers; a report of one tier may not list it again."""
        return self.tiers or [self]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Times of one system on one workload, beside one baseline of the same interleaved run.

    Attributes:
        p50_ms: Median time of a call of `batch` posts.
        p95_ms: None below 20 calls.
        p99_ms: None below 100 calls.
        ratio: The baseline's median over this one.
    """

    # A row with a key that no version wrote is an error, not something to pass over.
    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012

    workload: str
    backend: str
    precision: str
    threads: Annotated[int, Ge(1)]
    batch: Annotated[int, Ge(1)]
    p50_ms: Figure
    p95_ms: Figure
    p99_ms: Figure
    posts_per_s: Figure
    baseline: str | None
    ratio: Figure
    baseline_precision: str | None = None


@dataclass(slots=True, kw_only=True)
class PeerRecord:
    """A system that took part, or why it did not.

    Attributes:
        max_abs_error: Largest error of any raw logit on the timed posts; `errors` by workload.
        load_cpu_s: Processor time of import and load.
        first_post_ms: First call after that.
        peak_memory_mb: Peak resident size of its process in MiB.
        waiting: Wall time over processor time of its calls, the worst workload.
    """

    backend: str
    precision: str
    status: Literal["measured", "skipped", "failed"]
    reason: str
    about: str = ""
    max_abs_error: Figure = None
    errors: dict[str, Figure] = field(default_factory=dict)
    load_cpu_s: Figure = None
    first_post_ms: Figure = None
    peak_memory_mb: Figure = None
    waiting: Figure = None


@dataclass(slots=True, kw_only=True)
class VariantRecord:
    """What the export measured of a variant; `auto` goes by it."""

    variant: str
    entities: int | None = None
    changed_entities: int | None = None
    posts: int | None = None
    f1: float | dict[str, float] | None = None
    source: str | None = None
    ms_per_post: float | dict[str, float] | None = None


@dataclass(slots=True, kw_only=True)
class AutoRecord:
    """What `auto` took on this machine, and why."""

    provider: str
    precision: str
    reasons: list[str]
    variants: list[VariantRecord]


@dataclass(slots=True, kw_only=True)
class EngineRecord:
    """The bundle; `passed_over` are tiers that cannot run here, and why."""

    name: str
    manifest_sha256: str
    auto: AutoRecord | None = None
    passed_over: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class SettingsRecord:
    """How the run was made; `runs` is the number of merged reports."""

    threads: int
    clock: Literal["wall", "cpu"]
    quick: bool = False
    data: str
    posts: int
    pictures: int
    missing_pictures: int = 0
    runs: int = 1


@dataclass(slots=True, kw_only=True)
class ResourcesRecord:
    """Sizes on disk in MB: the bundle, and each variant's graphs with their weights."""

    bundle_mb: float
    variants_mb: dict[str, float]


@dataclass(slots=True, kw_only=True)
class Reliability:
    """Expected calibration error, and bins of (count, mean score, share correct)."""

    ece: float
    entities: int
    bins: list[Bin]


@dataclass(slots=True, kw_only=True)
class CalibrationRecord:
    """Whether scores mean what they say, before and after the temperature."""

    summary: str
    before: Reliability
    after: Reliability
    temperature: float = 1.0
    posts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class HostRow:
    """Processor time of the host for one post, beside an engine that answers at once.

    Attributes:
        kind: Text alone, or with a picture that is cached or not.
        state: What the text's caches knew: nothing, other posts, these posts.
        batch: Posts a call.
        us_per_post: Microseconds of all stages, certificate apart.
        stages_us: Microseconds of each stage.
        certificate_us: Microseconds that a certificate takes where one is asked for.
    """

    kind: str
    state: CacheState
    batch: Annotated[int, Ge(1)]
    us_per_post: Annotated[float, Ge(0)]
    stages_us: dict[str, Annotated[float, Ge(0)]]
    certificate_us: Figure = None


@dataclass(slots=True, kw_only=True)
class Report:
    """One run, or several merged; `bench.json` is its fields."""

    schema: Literal[1] = 1
    created: str
    amlr: str
    engine: EngineRecord
    settings: SettingsRecord
    machine: MachineRecord
    parity: ParityRecord
    rows: list[Row] = field(default_factory=list)
    peers: list[PeerRecord] = field(default_factory=list)
    resources: ResourcesRecord
    calibration: CalibrationRecord | None = None
    host: list[HostRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_engine(backend: str) -> bool:
    """Whether a system is the engine itself."""
    return backend.startswith(ENGINE_PREFIX)
