-- Moves an entry that we still own to the delayed set; it keeps its fields, with some replaced.
-- KEYS stream, delayed, payloads   ARGV group, consumer, id, stream number, delay in ms, then name, value, ...
-- Returns 1, or 0 when we own it no longer.
local id = ARGV[3]
if not owned(KEYS[1], ARGV[1], ARGV[2], id, id)[id] then return 0 end
local replaced, fields = {}, {}
for at = 6, #ARGV, 2 do
  replaced[ARGV[at]] = true
  fields[#fields + 1], fields[#fields + 2] = ARGV[at], ARGV[at + 1]
end
local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
if entry then
  for at = 1, #entry[2], 2 do
    if not replaced[entry[2][at]] then
      fields[#fields + 1], fields[#fields + 2] = entry[2][at], entry[2][at + 1]
    end
  end
  local member, now = ARGV[4] .. ':' .. id, redis.call('TIME')
  redis.call('HSET', KEYS[3], member, cmsgpack.pack(fields))
  redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[5], member)
end
redis.call('XACK', KEYS[1], ARGV[1], id)
redis.call('XDEL', KEYS[1], id)
return 1
