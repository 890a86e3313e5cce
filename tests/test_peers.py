"""peers.py, the PyTorch that benchmark.py --peers times, does the same work: against the original's numbers."""

import pytest
from golden_vectors import CASES, Case

torch = pytest.importorskip('torch')  # not in requirements.txt

from peers import Peer, as_tensorflow  # noqa: E402

OF_PEERS = [name for name in CASES if name not in ('omniglot_none', 'omniglot_layer_norm')]  # no benchmark's


@pytest.mark.parametrize('way', ['loop', 'vmap'])
@pytest.mark.parametrize('name', OF_PEERS)
def test_gradient_and_weights_after_adam(name, way):
    case = Case(name)
    peer = Peer(case.model(), way, threads=2)
    assert case.error(peer.step(case.tasks), 'g') < 1e-4
    weights = {name: as_tensorflow(weight.detach().numpy()) for name, weight in peer.weights.items()}
    # PyTorch's Adam adds its epsilon after the bias correction, which is felt where a gradient is tiny.
    assert case.error(weights, 'w1', start=case.weights) < 3e-2
