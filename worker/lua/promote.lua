-- Moves delayed entries that are due back to the end of their streams.
-- KEYS delayed, payloads, streams ...   ARGV most to move   -> how many
local now = redis.call('TIME')
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'LIMIT', 0, ARGV[1])
for _, member in ipairs(due) do
  local payload = redis.call('HGET', KEYS[2], member)
  if payload then
    redis.call('XADD', KEYS[2 + tonumber(member:match('^%d+'))], '*', unpack(cmsgpack.unpack(payload)))
  end
  redis.call('HDEL', KEYS[2], member)
  redis.call('ZREM', KEYS[1], member)
end
return #due
