"""The traffic file: what is accepted, and what the message says otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.benchmarks.capacity.traffic import Traffic
from amlr.errors import InputError

PLAIN: dict[str, Any] = {"rate_per_s": [10, 30], "p99_ms": 200, "tokens": {"20": 1, "60": 3}}


def test_reads_a_file_with_defaults(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(json.dumps(PLAIN))
    traffic = Traffic.read(path)
    assert traffic.rate_per_s == (10.0, 30.0)
    assert traffic.tokens == {20: 1.0, 60: 3.0}
    assert traffic.pictures.share == 0.0
    assert traffic.replica.batch_posts == 16


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"rate_per_s": []}, "rate_per_s"),
        ({"rate_per_s": [0, 0]}, "rate_per_s"),
        ({"rate_per_s": [-1, 5]}, "rate_per_s"),
        ({"rate_per_s": "many"}, "rate_per_s"),
        ({"tokens": {"x": 1}}, "tokens"),
        ({"tokens": {}}, "tokens"),
        ({"p99_ms": 0}, "p99_ms"),
        ({"pictures": {"share": 2}}, "pictures.share"),
        ({"pictures": {"shares": 1}}, "'shares'"),
        ({"pictures": 3}, "pictures"),
        ({"pictures": {"distinct": "10"}}, "pictures.distinct"),
        ({"machine": {"cores": 1}, "replica": {"workers": 2}}, "machine.cores"),
        ({"autoscaling": {"minimum": 9, "maximum": 3}}, "autoscaling.minimum"),
        ({"autoscaling": {"utilisation": 1.5}}, "autoscaling.utilisation"),
        ({"speed": 1}, "'speed'"),
    ],
)
def test_names_the_wrong_field(change: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        Traffic.from_dict(PLAIN | change)


def test_names_a_missing_field() -> None:
    with pytest.raises(InputError, match="'tokens'"):
        Traffic.from_dict({"rate_per_s": [1], "p99_ms": 5})


def test_the_rate_goes_round_the_clock() -> None:
    traffic = Traffic.from_dict(PLAIN)
    quarter = 86_400 / 4
    middles = np.array([quarter, 3 * quarter])
    np.testing.assert_allclose(traffic.rate_at(middles), [10, 30])
    # Midnight lies between the evening's and the morning's part.
    np.testing.assert_allclose(traffic.rate_at(np.array([0.0, 86_400.0])), [20, 20])


def test_lengths_come_in_their_shares() -> None:
    drawn = Traffic.from_dict(PLAIN).draw_tokens(4000, np.random.default_rng(0))
    assert set(drawn.tolist()) == {20, 60}
    assert abs((drawn == 60).mean() - 0.75) < 0.03
