"""The steps of a run, most valuable first, and what each is expected to cost. Imports nothing."""

from dataclasses import dataclass

HERE = "amlr.benchmarks.gpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: As `--steps` takes it.
        target: `module:function`; the function takes a `Context` and yields rows.
        seconds: Expected on an H100; a budget that holds less does not start the step.
        limit: Seconds after which the step is killed.
        smoke: Expected seconds of one repetition of everything.
    """

    name: str
    target: str
    seconds: int
    limit: int
    smoke: int

    def expected(self, *, smoke: bool) -> int:
        """Expected seconds."""
        return self.smoke if smoke else self.seconds


def _step(name: str, target: str, seconds: int, limit: int, smoke: int) -> Step:
    return Step(name=name, target=f"{HERE}.{target}", seconds=seconds, limit=limit, smoke=smoke)


STEPS = (
    _step("ceilings", "setup_steps:ceilings", 8, 40, 6),
    _step("install", "setup_steps:install", 15, 60, 15),
    _step("kernel-replay", "kernel_steps:replay", 15, 60, 10),
    _step("kernel-tests", "kernel_steps:tests", 30, 90, 30),
    _step("kernel-sanitizers", "kernel_steps:sanitizers", 50, 90, 20),
    _step("kernel-times", "kernel_steps:times", 40, 80, 10),
    _step("ort-parity", "onnx_steps:parity", 30, 70, 15),
    _step("ort-speed", "onnx_steps:speed", 50, 100, 20),
    _step("eager", "torch_steps:eager", 20, 60, 10),
    _step("decoders", "engine_steps:decoders", 15, 40, 8),
    _step("compile", "torch_steps:compile_static", 60, 120, 25),
    _step("end-to-end", "engine_steps:end_to_end", 25, 60, 10),
    _step("compile-max", "torch_steps:compile_max", 60, 150, 0),
    _step("small", "engine_steps:small", 40, 90, 15),
)
