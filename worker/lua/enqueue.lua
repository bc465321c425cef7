-- Adds a job once, however often a client repeats the call after a lost reply.
-- KEYS stream, queued, verdict   ARGV most waiting, seconds to remember, then the fields
-- Returns {'queued' | 'known' | 'answered' | 'full', entry id or number waiting}.
if redis.call('EXISTS', KEYS[3]) == 1 then return {'answered', ''} end
local id = redis.call('GET', KEYS[2])
if id then return {'known', id} end
local waiting = redis.call('XLEN', KEYS[1])
if waiting >= tonumber(ARGV[1]) then return {'full', tostring(waiting)} end
local given = {}
for at = 3, #ARGV do given[at - 2] = ARGV[at] end
local fields, cut = merged({}, given)
if cut then return redis.error_reply('ERR too many fields for a job') end
id = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('SET', KEYS[2], id, 'EX', ARGV[2])
return {'queued', id}
