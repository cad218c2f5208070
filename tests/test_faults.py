"""The product under one fault after the other, as it runs; all of them together, and more tasks, in `make soak`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.soak import chaos
from tests.soak.product import Product, running
from tests.studio import running_studio


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    with running_studio() as studio, running(tmp_path_factory.mktemp("faults"), studio) as product:
        yield product


@pytest.mark.parametrize(
    "fault",
    [
        chaos.worker_killed,
        chaos.queue_server_wiped,
        chaos.queue_file_corrupted,
        chaos.queue_server_hung,
        chaos.label_studio_broken,
        chaos.supervisor_killed,
    ],
    ids=lambda fault: fault.__name__,
)
def test_fault__nothing_is_lost_or_doubled(product: Product, fault: chaos.Fault) -> None:
    first = len(product.studio.tasks) + 1
    batch = range(first, first + 5)
    product.add_clips(batch)
    for task in (*batch, *batch):
        assert product.tell(task, timeout_s=30)[0] == 201
    print(fault(product))
    product.wait_until_done(batch.stop - 1, 240)
    assert product.wrong_predictions() == []
