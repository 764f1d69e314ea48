"""The fusion graphs in plain NumPy, with trivial arithmetic: they test indices, not models.

A unit's logits are its summed steps plus, with a picture, the picture's summed regions.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]


def packed_fusion(feed: Arrays, scales: int) -> Arrays:
    hidden = feed["hidden_nd"]
    units = np.concatenate([hidden[feed[f"rows_{k}"]].sum(1) for k in range(1, scales + 1)])
    queries = units[feed["attend_rows_r"]]
    mixed = queries[feed["attend_pad_is"]] * 0 + feed["pool_npd"][feed["slot_i"]].sum(1)[:, None]
    taken = mixed.reshape(-1, hidden.shape[1])[feed["attend_unpad_r"]]
    nothing = np.full((1, hidden.shape[1]), -100.0)
    taken = np.concatenate([taken, nothing])[feed["context_index_m"]]
    return {"unit_logits_mc": units + taken, "emissions_ny": hidden * 2}


def closed_fusion(feed: Arrays, scales: int) -> Arrays:
    hidden = feed["hidden_nd"]
    units = np.concatenate([hidden[feed[f"rows_{k}"]].sum(1) for k in range(1, scales + 1)])
    return {"unit_logits_mc": units - 100.0, "emissions_ny": hidden * 2}


def padded_fusion(feed: Arrays, scales: int) -> Arrays:
    hidden = feed["hidden_btd"]
    steps = hidden.shape[1]
    parts = [
        np.stack([hidden[:, i : i + k].sum(1) for i in range(steps - k + 1)], 1)
        for k in range(1, scales + 1)
    ]
    units = np.take_along_axis(np.concatenate(parts, 1), feed["unit_index_bs"][:, :, None], 1)
    slot = feed["slot_b"]
    taken = feed["pool_npd"][np.maximum(slot, 0)].sum(1)
    taken = np.where(slot[:, None] >= 0, taken, -100.0)
    return {"unit_logits_bsc": units + taken[:, None], "emissions_bty": hidden * 2}
