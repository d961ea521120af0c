"""The queue of maps."""

import torch

from nnunet_mutual.modules.queue import MapQueue


def test_unusable_maps_leave_nothing_behind():
    queue = MapQueue(2, 3, 4, torch.device("cpu"))
    maps = torch.full((1, 2, 4), float("nan"))
    maps[0, 1] = 0.5
    queue.put(maps, torch.tensor([[False, True]]))
    assert torch.equal(queue.filled[:, 0], torch.tensor([False, True]))
    assert torch.equal(queue.maps[:, 0], torch.tensor([[0.0] * 4, [0.5] * 4], dtype=torch.float16))
