-- Moves delayed entries that are due back to the end of their streams.
-- KEYS delayed, payloads, streams ...   ARGV most to move, ms to wait for a stream that is not usable, longest delay in ms
-- -> how many
-- What cannot be read back goes to its stream with the field 'unreadable', for the worker to bury; the others go on.
local delayed, payloads = KEYS[1], KEYS[2]
if not (usable(delayed, 'zset') and usable(payloads, 'hash')) then return 0 end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- The fields of a payload, or a stand-in that says what is wrong with it.
local function read(payload)
  local done, flat = pcall(cmsgpack.unpack, payload or '')
  local sound = done and type(flat) == 'table' and #flat > 1 and #flat % 2 == 0
  for at = 1, sound and #flat or 0 do sound = sound and type(flat[at]) == 'string' end
  if not sound then return {'unreadable', payload and 'damaged' or 'missing', 'payload', payload or ''} end
  local fields, cut = merged({}, flat)
  if cut then fields[#fields + 1], fields[#fields + 2] = 'unreadable', 'too many fields' end
  return fields
end

local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, ARGV[1])
if #due == 0 then due = redis.call('ZRANGEBYSCORE', delayed, now + ARGV[3], '+inf', 'LIMIT', 0, ARGV[1]) end
for _, member in ipairs(due) do
  local number = tonumber(member:match('^%d+') or 0)
  local stream = number > 0 and KEYS[2 + number] or KEYS[3]
  if usable(stream, 'stream') then
    redis.call('XADD', stream, '*', unpack(read(redis.call('HGET', payloads, member))))
    redis.call('HDEL', payloads, member)
    redis.call('ZREM', delayed, member)
  else
    redis.call('ZADD', delayed, now + ARGV[2], member)
  end
end
return #due
