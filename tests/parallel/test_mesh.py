"""What is refused of a mesh."""

from __future__ import annotations

import numpy as np
import pytest
from jax.sharding import Mesh

from bigctl.errors import ConfigError
from bigctl.parallel import axes
from bigctl.parallel import mesh as meshes
from bigctl.planning import devices


@pytest.mark.parametrize(
    ("batch", "parts", "said", "hint"),
    [
        (10, 1, "train.batch_size=10 cannot be divided evenly over 4 devices", "a multiple of 4, such as 8 or 12"),
        (8, 4, "train.batch_size=8 in 4 parts cannot be divided evenly over 4 devices", "a multiple of 16, such as 16"),
    ],
)
def test_a_batch_that_devices_cannot_share_is_refused_with_sizes_that_they_can(
    batch: int, parts: int, said: str, hint: str
) -> None:
    sizes = {**dict.fromkeys(axes.NAMES, 1), "data": 4}
    mesh = Mesh(np.array(devices.simulated(4)).reshape(*sizes.values()), axes.NAMES)
    with pytest.raises(ConfigError, match=said) as caught:
        meshes.check_batch(mesh, batch, parts)
    assert hint in str(caught.value.hint)
    meshes.check_batch(mesh, 16, 4)
