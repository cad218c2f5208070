"""Retrieval measured: on categories made here, and on the reference sets where they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from lookalike.errors import RequestError
from lookalike.records import Embeddings
from workers.evaluate import command, read_labelled
from workers.retrieval import average_precision, retrieve

DATA = Path(__file__).parent.parent.parent / "shared" / "data" / "emb"


def made(noise: float) -> tuple[Embeddings, list[str]]:
    random = np.random.default_rng(0)
    truth = np.repeat(np.arange(6), 30)
    vectors = random.normal(size=(6, 24))[truth] + noise * random.normal(size=(180, 24))
    return Embeddings(np.arange(180), vectors.astype(np.float32), "made"), [f"category {t}" for t in truth]


def test_retrieve__clear_categories_are_found_and_noise_is_not() -> None:
    clear, noise = retrieve(*made(0.1), examples=5), retrieve(*made(50.0), examples=5)
    assert clear.mean_average_precision == clear.precision_at_10 == 1
    assert clear.precision_at_50 == 0.5  # 25 are left of each
    assert clear.categories == 6
    assert noise.mean_average_precision < 0.3


def test_retrieve__more_examples_than_there_are() -> None:
    with pytest.raises(RequestError, match="no category has more than 30 keyframes"):
        retrieve(*made(0.1), examples=30)


def test_average_precision__by_hand() -> None:
    assert average_precision(np.asarray([True, False, True, False])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(3, bool)) == 0


def test_command__retrieval_as_json(tmp_path: Path) -> None:
    embeddings, truth = made(0.1)
    np.savez(tmp_path / "emb.npz", X=embeddings.vectors, y=np.asarray(truth))
    arguments = [str(tmp_path / "emb.npz"), "--retrieval", "--examples", "5", "--json"]
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    found = json.loads(result.output)
    assert (found["examples"], found["mean_average_precision"]) == (5, 1.0)


@pytest.mark.parametrize(("name", "least"), [("caltech101", 0.88), ("grocery81", 0.76)])
def test_retrieve__reference_sets(name: str, least: float) -> None:
    path = DATA / f"lite0_{name}_f16.npz"
    if not path.exists():
        pytest.skip("the reference embeddings are not on this machine")
    assert retrieve(*read_labelled(path), examples=10, seeds=1).mean_average_precision >= least
