-- Moves an entry that we still own to the delayed set; it keeps its fields, with some replaced.
-- KEYS stream, delayed, payloads   ARGV group, consumer, id, stream number, delay in ms, then name, value, ...
-- Returns 1; 0 when we own it no longer; -1 when something else stands under the delayed set's keys: nothing is done then.
local id = ARGV[3]
if not owned(KEYS[1], ARGV[1], ARGV[2], id, id)[id] then return 0 end
if not (usable(KEYS[2], 'zset') and usable(KEYS[3], 'hash')) then return -1 end
local replaced = {}
for at = 6, #ARGV do replaced[at - 5] = ARGV[at] end
local entry = redis.call('XRANGE', KEYS[1], id, id)[1]
if entry then
  local member, now = ARGV[4] .. ':' .. id, redis.call('TIME')
  redis.call('HSET', KEYS[3], member, cmsgpack.pack((merged(replaced, entry[2]))))
  redis.call('ZADD', KEYS[2], now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[5], member)
end
redis.call('XACK', KEYS[1], ARGV[1], id)
redis.call('XDEL', KEYS[1], id)
return 1
