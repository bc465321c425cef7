"""A pool of Ray actors that items go through, on a cluster or on this machine. Knows nothing of what they do.

Ray is imported where it is used. One of its actors that dies is started again, and what it worked on comes again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from utils.errors import BadSettings, ClusterUnreachable

LOCAL = "local"
_ATTEMPTS = 3  # of a start: Ray gives up after half a minute, which a busy machine takes


def check_ray(option: str) -> None:
    """Say so before hours of work, not after.

    Raises:
        BadSettings: Ray Data is not installed.
    """
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise BadSettings(f"{option} needs Ray Data: pip install 'ray[data]'")


def through_actors(
    items: Sequence[Mapping[str, Any]],
    actor: type,
    arguments: Sequence[object],
    address: str,
    *,
    actors: int,
    gpus: float = 0,
) -> Iterator[Mapping[str, Any]]:
    """What the actors answer, in any order.

    Args:
        actor: a class whose instances are called with one item; made of ``arguments``.
        address: of a cluster; "local": one for these items, on the loopback address of this machine.
        actors: each takes one CPU.
        gpus: that each actor takes.

    Raises:
        ClusterUnreachable: the cluster does not start or answer.
    """
    if not items:
        return
    ray = _connected(address, actors)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # ours counts images
        yield from (
            ray.data.from_items([dict(each) for each in items], override_num_blocks=len(items))
            .map(
                actor,
                fn_constructor_args=tuple(arguments),
                compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
                num_cpus=1,
                num_gpus=gpus,
            )
            .iter_rows()
        )
    finally:
        ray.shutdown()


def _connected(address: str, actors: int) -> Any:
    if address == LOCAL:  # Ray's switch for staying on loopback, as it does on macOS; read when it is imported
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray
    import ray.data

    for attempts_left in range(_ATTEMPTS - 1, -1, -1):
        try:
            if address == LOCAL:
                ray.init(LOCAL, num_cpus=actors, include_dashboard=False)
            else:
                ray.init(address)
            break
        except Exception as error:  # Ray raises Exception itself where a node does not start within half a minute
            ray.shutdown()
            if not attempts_left:
                said = f"Ray at {address}: {error}; check the address, or run again when this machine has time"
                raise ClusterUnreachable(said) from error
    return ray
