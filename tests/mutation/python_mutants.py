"""Bugs to inject into the Python of decoding: tie rule, radii, units, offsets, batches."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PythonMutant:
    """One bug.

    Attributes:
        name: What is wrong.
        file: Source file, counted from the package.
        old: Text to replace.
        new: What to put there.
        by: The test that must catch it, counted from `tests`.
    """

    name: str
    file: str
    old: str
    new: str
    by: str


VITERBI, SEGMENTAL = "kernels/viterbi.py", "kernels/segmental.py"
CERTIFICATE, JOINT = "kernels/certificate.py", "kernels/joint.py"
DECODE, WINDOWS = "runtime/decode.py", "runtime/windows.py"
PATHS = "kernels/test_viterbi.py::"
SEGMENTS = "kernels/test_segmental.py::"
BOXES = "kernels/test_certificate.py::"
SCORES = "kernels/test_joint.py::"
SURE = "kernels/test_confidence.py::"
ENTITIES = "runtime/test_decode.py::"

PYTHON_MUTANTS = (
    # Tie rule
    PythonMutant(
        "a linear chain ends in the highest of tied tags",
        VITERBI,
        "last = final_by.argmax(1)",
        "last = final_by.shape[1] - 1 - final_by[:, ::-1].argmax(1)",
        PATHS + "test_ties_take_the_lowest_tag_from_the_end_backwards",
    ),
    PythonMutant(
        "a tie takes the entity",
        SEGMENTAL,
        "best[longest:] > best[longest - 1 : -1]",
        "best[longest:] >= best[longest - 1 : -1]",
        SEGMENTS + "test_tie_rule",
    ),
    PythonMutant(
        "a tie of a single post takes the entity",
        SEGMENTAL,
        "if total > best[-1] or longer:",
        "if total >= best[-1] or longer:",
        SEGMENTS + "test_tie_rule",
    ),
    PythonMutant(
        "a single post's tie takes the unit that comes first",
        SEGMENTAL,
        "if total > best[-1] or longer:",
        "if total > best[-1]:",
        SEGMENTS + "test_tie_rule",
    ),
    PythonMutant(
        "tied classes take the highest",
        SEGMENTAL,
        "rows[:, 2] = scores_uc[unit].argmax(1)",
        "rows[:, 2] = scores_uc.shape[1] - 1 - scores_uc[unit][:, ::-1].argmax(1)",
        SEGMENTS + "test_answer_equals_exhaustive_search",
    ),
    PythonMutant(
        "among tied answers a worse prefix comes first",
        "kernels/nbest.py",
        'np.argsort(-candidates_bk, axis=1, kind="stable")[:, :n]',
        'candidates_bk.shape[1] - 1 - np.argsort(-candidates_bk[:, ::-1], axis=1, kind="stable")'
        "[:, :n]",
        SURE + "test_n_best_segmentations",
    ),
    # Radii
    PythonMutant(
        "the box moves the answer by one radius less",
        CERTIFICATE,
        "corner[unit, label] -= 2 * radius_uc[unit, label]",
        "corner[unit, label] -= radius_uc[unit, label]",
        BOXES + "test_segmental_certificate_is_sound_and_complete",
    ),
    PythonMutant(
        "unit logits move g by one radius only",
        CERTIFICATE,
        "np.broadcast_to(2 * radius, units.start_u.shape)",
        "np.broadcast_to(radius, units.start_u.shape)",
        BOXES + "test_joint_certificate_is_sound_and_complete",
    ),
    PythonMutant(
        "the weight of the emissions is left out of the box",
        CERTIFICATE,
        "2 * weight * token_radius",
        "2 * token_radius",
        BOXES + "test_joint_certificate_is_sound_and_complete",
    ),
    PythonMutant(
        "words outside the answer are left where they are",
        CERTIFICATE,
        "weights = (covered < 0)",
        "weights = (covered < -1)",
        BOXES + "test_joint_certificate_is_sound_and_complete",
    ),
    # Units and scores
    PythonMutant(
        "the first word of a run takes the inside tag",
        JOINT,
        "emissions_wy.take(begin, axis=1)",
        "emissions_wy.take(inside, axis=1)",
        SCORES + "test_every_run_scores_as_defined",
    ),
    PythonMutant(
        "runs without a unit pay no bias",
        JOINT,
        "    table -= np.float32(bias)\n",
        "",
        SCORES + "test_every_run_scores_as_defined",
    ),
    PythonMutant(
        "marginals ignore the temperature",
        "kernels/confidence.py",
        "units.scores_uc.astype(np.float64) / temperature",
        "units.scores_uc.astype(np.float64)",
        SURE + "test_entity_marginals",
    ),
    PythonMutant(
        "units of larger scales are numbered too high",
        "runtime/units.py",
        "- (scale - 1) * (scale - 2) // 2 + start",
        "+ start",
        "runtime/test_units.py::test_all_units_are_numbered_scale_major",
    ),
    # Offsets
    PythonMutant(
        "an entity begins one word early",
        SEGMENTAL,
        "rows[:, 0] = end + 1 - words",
        "rows[:, 0] = end - words",
        SEGMENTS + "test_tie_rule",
    ),
    PythonMutant(
        "an entity ends with its first word",
        DECODE,
        "int(spans[last, 1])",
        "int(spans[first, 1])",
        ENTITIES + "test_segmental",
    ),
    PythonMutant(
        "words are read at their last subword",
        WINDOWS,
        "self.emissions_ty[self.sequence.first_n]",
        "self.emissions_ty[self.sequence.last_n]",
        ENTITIES + "test_words_of_several_subwords_are_read_at_their_first",
    ),
    PythonMutant(
        "the window with the narrower context wins",
        WINDOWS,
        "context = np.minimum(left, right)[inside]",
        "context = np.maximum(left, right)[inside]",
        "runtime/test_windows.py::test_scores_come_from_the_widest_context",
    ),
    # Batches
    PythonMutant(
        "shorter sequences enter the trace one step late",
        VITERBI,
        "ends_tb = lengths - 1 == np",
        "ends_tb = lengths == np",
        PATHS + "test_batch_mates_and_padding_change_no_bit",
    ),
    PythonMutant(
        "words are counted over the whole batch",
        JOINT,
        "    end_w -= bounds[:-1].astype(np.int32).repeat(bounds[1:] - bounds[:-1])\n",
        "",
        SCORES + "test_a_post_scores_the_same_in_any_batch",
    ),
    PythonMutant(
        "an entity takes the probability of another unit",
        DECODE,
        "marginals[np.arange(len(found.unit_e)), found.rows_e3[:, 2]]",
        "marginals[::-1][np.arange(len(found.unit_e)), found.rows_e3[:, 2]]",
        ENTITIES + "test_a_post_is_as_sure_alone_as_among_others",
    ),
    PythonMutant(
        "a batch may hold more steps than its budget",
        "runtime/batching.py",
        "(len(last) + 1) * lengths[index] > max_tokens",
        "len(last) * lengths[index] > max_tokens",
        "runtime/test_batching.py::test_batches_hold_every_window_once",
    ),
)
