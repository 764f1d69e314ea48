"""Decoders and their certificates: linear chain, segmental and joint, on NumPy, Numba and CUDA."""

from amlr.kernels.confidence import entity_marginals as entity_marginals
from amlr.kernels.confidence import tag_marginals as tag_marginals
from amlr.kernels.joint import joint_scores as joint_scores
from amlr.kernels.segmental import segmental_decode as segmental_decode
from amlr.kernels.units import Units as Units
from amlr.kernels.viterbi import viterbi_decode as viterbi_decode
