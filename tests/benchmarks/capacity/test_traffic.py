"""The traffic file: what is accepted, and what the message says otherwise."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from amlr.benchmarks.capacity.fleet import draw_arrivals
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
        ({"pictures": {"shares": 1}}, r"pictures\.shares: "),
        ({"pictures": 3}, "pictures"),
        ({"pictures": {"distinct": "10"}}, "pictures.distinct"),
        ({"pictures": {"distinct": 0}}, "pictures.distinct"),
        ({"replica": {"workers": True}}, "replica.workers"),
        ({"replica": {"wait_ms": float("nan")}}, "replica.wait_ms"),
        ({"tokens": {"0": 1}}, "tokens.0"),
        ({"tokens": {"5": 0}}, "tokens needs a share"),
        ({"machine": {"cores": 1}, "replica": {"workers": 2}}, "machine.cores"),
        ({"autoscaling": {"minimum": 9, "maximum": 3}}, "autoscaling.minimum"),
        ({"autoscaling": {"utilisation": 1.5}}, "autoscaling.utilisation"),
        ({"speed": 1}, "speed: "),
    ],
)
def test_names_the_wrong_field(change: dict[str, Any], names: str) -> None:
    with pytest.raises(InputError, match=names):
        Traffic.parse(json.dumps(PLAIN | change))


def test_names_a_missing_field() -> None:
    with pytest.raises(InputError, match="tokens: Field required"):
        Traffic.parse('{"rate_per_s": [1], "p99_ms": 5}')


def test_what_is_no_json_is_said() -> None:
    for text in ("", "{", b"\xff", "[]"):
        with pytest.raises(InputError, match=r"traffic: .*see docs/howto/capacity\.md"):
            Traffic.parse(text)


def test_a_number_of_pictures_may_be_written_with_an_exponent() -> None:
    traffic = Traffic.parse(json.dumps(PLAIN)[:-1] + ', "pictures": {"share": 1, "distinct": 2e6}}')
    assert traffic.pictures.distinct == 2_000_000


def test_the_rate_goes_round_the_clock() -> None:
    traffic = Traffic.parse(json.dumps(PLAIN))
    quarter = 86_400 / 4
    middles = np.array([quarter, 3 * quarter])
    np.testing.assert_allclose(traffic.rate_at(middles), [10, 30])
    # Midnight lies between the evening's and the morning's part.
    np.testing.assert_allclose(traffic.rate_at(np.array([0.0, 86_400.0])), [20, 20])


def test_lengths_and_pictures_come_in_their_shares() -> None:
    traffic = Traffic.parse(json.dumps(PLAIN | {"pictures": {"share": 0.5}}))
    arrivals = draw_arrivals(traffic, 0.2, 10, 4000, np.random.default_rng(0))
    assert set(arrivals.tokens.tolist()) == {20, 60}
    assert abs((arrivals.tokens == 60).mean() - 0.75) < 0.03
    states = np.bincount(arrivals.state) / 4000
    np.testing.assert_allclose(states, [0.5, 0.1, 0.4], atol=0.03)
    assert abs(arrivals.at_s[-1] - 400) < 20
