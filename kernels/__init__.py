"""Decoders and their certificates: linear chain, segmental and joint, on NumPy and CUDA."""

from amlr.kernels.calibration import Reliability as Reliability
from amlr.kernels.calibration import expected_calibration_error as expected_calibration_error
from amlr.kernels.calibration import fit_temperature as fit_temperature
from amlr.kernels.calibration import is_tuning_half as is_tuning_half
from amlr.kernels.calibration import negative_log_likelihood as negative_log_likelihood
from amlr.kernels.calibration import reliability_bins as reliability_bins
from amlr.kernels.calibration import segmentation_nll as segmentation_nll
from amlr.kernels.certificate import box_redecode as box_redecode
from amlr.kernels.certificate import margin as margin
from amlr.kernels.certificate import required_margin as required_margin
from amlr.kernels.confidence import entity_marginals as entity_marginals
from amlr.kernels.confidence import span_marginals as span_marginals
from amlr.kernels.confidence import tag_marginals as tag_marginals
from amlr.kernels.joint import joint_scores as joint_scores
from amlr.kernels.nbest import n_best as n_best
from amlr.kernels.segmental import segmental_decode as segmental_decode
from amlr.kernels.units import Units as Units
from amlr.kernels.viterbi import viterbi_decode as viterbi_decode
