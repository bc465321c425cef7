-- Put before every script that changes entries: only their owner may, and XACK does not ask who calls.
-- The set of ids from `first` to `last` that the consumer owns: one XPENDING costs less than one per id.
local function owned(stream, group, consumer, first, last)
  local pending, mine = redis.pcall('XPENDING', stream, group, first, last, 1000000, consumer), {}
  if not pending.err then -- err: NOGROUP, so nobody owns anything
    for at = 1, #pending do mine[pending[at][1]] = true end
  end
  return mine
end

