"""Settings at run time in the queue's server, for every worker and API that shares it."""

from __future__ import annotations

from pydantic import ValidationError
from redis.exceptions import RedisError

from utils.errors import QueueUnreachable
from utils.live_settings import State
from worker.connect import Client
from worker.stream import Keys

_SWAP = """\
local kept = redis.call('GET', KEYS[1])
local version = kept and cjson.decode(kept).version or 0
if version ~= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""


class RedisKeeper:
    """A ``utils.live_settings.Keeper``."""

    def __init__(self, client: Client, keys: Keys) -> None:
        self._client = client
        self._key = keys.settings

    async def read(self) -> State:
        """
        Raises:
            QueueUnreachable: no answer, a refusal, or somebody else's value.
        """
        try:
            kept = await self._client.get(self._key)
            return State.model_validate_json(kept) if kept else State()
        except (RedisError, OSError) as error:
            raise QueueUnreachable(f"{self._key} cannot be read: {error}") from error
        except ValidationError as error:
            raise QueueUnreachable(f"{self._key} holds something else than settings; delete it") from error

    async def write(self, state: State) -> bool:
        """
        Raises:
            QueueUnreachable: no answer, or a refusal.
        """
        try:
            text = state.model_dump_json()
            return bool(await self._client.eval(_SWAP, 1, self._key, str(state.version - 1), text))
        except (RedisError, OSError) as error:
            raise QueueUnreachable(f"{self._key} cannot be written: {error}") from error
