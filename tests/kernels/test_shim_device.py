"""The shim's record mode knows which bytes somebody wrote."""

import numpy as np
import pytest

from amlr.kernels.cuda import DeviceWork
from amlr.kernels.launch_linear import Chains, LinearKernels
from shims.cases import chain_case
from shims.host_build import HostBuilder
from shims.shim_device import ShimDevice


def test_unwritten_memory_never_comes_back(host_builder: HostBuilder) -> None:
    work = DeviceWork(ShimDevice(host_builder, record=True))
    array = np.zeros(4, np.int32)
    work.fetch((array, work.put(array)))
    with pytest.raises(AssertionError, match="bytes from 0 on come back unwritten"):
        work.fetch((array, work.room(array)))


def test_a_result_that_depends_on_unwritten_memory_is_an_error(host_builder: HostBuilder) -> None:
    device = ShimDevice(host_builder, record=True)
    kernels = LinearKernels(device.library(), tags=9)
    case = chain_case(0, 3, 6, 9)
    work = DeviceWork(device)
    chains = Chains(
        emissions=work.put(case.emissions_bty),
        lengths=work.put(case.lengths_b.astype(np.int32)),
        start=work.room(case.start_y),
        transitions=work.put(case.transitions_yy),
        end=work.put(case.end_y),
        batch=3,
        max_steps=6,
    )
    outputs = {"tags": work.room(np.zeros((3, 6), np.int32)), "scores": work.room(np.zeros(3, "f"))}
    with pytest.raises(AssertionError, match="linear_viterbi_y9 depends on memory"):
        kernels.decode(work.stream, chains, **outputs)
