"""Recorded launches for the sanitizers and the mutants.

Each was compared with the NumPy decoders when it was recorded, so what a replay must leave behind
is not merely what the kernel happened to do.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np

from amlr.errors import ShapeError
from amlr.kernels import segmental_decode, viterbi_decode
from amlr.kernels.images import KernelSpec
from shims.cases import ChainCase, chain_case, chosen_marginals, unit_case
from shims.full_decoders import FullDecoders
from shims.host_build import HostBuilder
from shims.joint import joint_case, run_joint
from shims.raw import decode_gathered, decode_units
from shims.shim_device import ShimDevice

SPECS = (
    KernelSpec(source="linear_viterbi", tags=9),
    KernelSpec(source="linear_viterbi", tags=17),
    KernelSpec(source="linear_confidence", tags=9),
    KernelSpec(source="unit_scores", tags=13),
    KernelSpec(source="segmental_viterbi", tags=13),
    KernelSpec(source="segmental_confidence", tags=13),
)


def record_corpus(builder: HostBuilder, target: Path, *, small: bool = False) -> Path:
    """Run the decoders on the shim and write down every launch.

    Args:
        builder: Builds the host libraries.
        target: File to write.
        small: Few launches, for ThreadSanitizer, where a launch takes seconds.
    """
    device = ShimDevice(builder, record=True)
    decoders = FullDecoders(device.library(), unit_tags=13)
    if small:
        _linear(decoders, chain_case(1, 3, 11, 9), 9)
        _linear(decoders, chain_case(2, 3, 8, 17), 17)
        _segmental(decoders, 3, 6)
        run_joint(device.library(), joint_case(1), np.full((4, 2), (0.1, 0.03)))
    else:
        _record_all(device, decoders)
    target.write_bytes(device.saved_recording())
    return target


def _record_all(device: ShimDevice, decoders: FullDecoders) -> None:
    library = device.library()
    for steps, integers, constrained in itertools.product(
        (1, 2, 8, 9, 10, 17), (True, False), (False, True)
    ):
        flags = {"integers": integers, "constrained": constrained}
        _linear(decoders, chain_case(steps, 5, steps, 9, **flags), 9)
        if steps in (2, 10):
            _linear(decoders, chain_case(steps, 5, steps + 4, 17, **flags), 17)
    zeros = np.zeros((2, 20, 9), np.float32)
    decoders.viterbi_decode(zeros, [20, 3], zeros[0, 0], zeros[0, :9], zeros[0, 0])
    unreachable = chain_case(6, 3, 12, 9)
    unreachable.start_y[3] = unreachable.transitions_yy[:, 3] = -np.inf
    _linear(decoders, unreachable, 9)
    spoilt = chain_case(3, 3, 12, 9)
    spoilt.emissions_bty[0, 7, 4] = np.inf
    try:
        decoders.viterbi_decode(*spoilt.arguments())
    except ShapeError:
        pass  # the kernel's answer is on record
    else:
        raise AssertionError("an infinite emission was not noticed")
    _linear(decoders, chain_case(7, 1, 140, 9), 9)  # more steps than a window
    decode_gathered(library, chain_case(4, 4, 26, 9), 4)
    for seed in range(8):
        _segmental(decoders, seed, 14)
    _segmental(decoders, 8, 40)  # more words than lanes
    _segmental(decoders, 11, 70, density=0.03)  # and sums that hardly grow meanwhile
    for seed in (9, 10):  # units too long for the table
        _segmental(decoders, seed, 40, longest=40, density=0.15)
    broken = np.array([[1], [np.nan], [1], [1], [2]], np.float32)
    decode_units(library, [0, 2, 4, 5], [(0, 0), (1, 1), (0, 2), (1, 1), (0, 3)], broken, [2, 3, 2])
    for seed in range(3):
        case = joint_case(seed)
        radii_b2 = np.random.default_rng(seed).choice([0.01, 0.1], (len(case.lengths_b), 2))
        run_joint(library, case, radii_b2)


def _linear(decoders: FullDecoders, case: ChainCase, tags: int) -> None:
    path, scores = decoders.viterbi_decode(*case.arguments())
    expected = viterbi_decode(case.emissions_bty, case.lengths_b, **case.parameters())
    np.testing.assert_array_equal(path, expected[0])
    np.testing.assert_array_equal(scores, expected[1])
    if tags == 9:
        emissions, lengths, *parts = case.arguments()
        temperature = 1.0 if case.allowed_yy is None else 1.7
        decoders.path_confidence(emissions, lengths, path, *parts, temperature=temperature)


def _segmental(
    decoders: FullDecoders, seed: int, words: int, *, longest: int = 5, density: float = 0.7
) -> None:
    units, lengths = unit_case(
        seed,
        5,
        words,
        1 + seed % 3,
        longest=longest,
        density=density,
        integers=seed % 2 == 0,
        shuffled=seed % 3 == 0,
    )
    if longest > 5:  # long units win now and then
        longer = units.scores_uc + (units.end_u - units.start_u)[:, None]
        units = replace(units, scores_uc=longer)
    entities, _ = decoders.certify(units, lengths, 0.2)
    expected, _ = segmental_decode(units, lengths)
    assert [rows.tolist() for rows in entities] == [rows.tolist() for rows in expected]
    temperature = 1.0 if seed % 2 else 2.5
    _, sure = decoders.entity_confidence(units, lengths, temperature=temperature)
    np.testing.assert_allclose(
        np.concatenate(sure),
        chosen_marginals(units, lengths, expected, temperature),
        rtol=0,
        atol=1e-5,
    )
