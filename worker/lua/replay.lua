-- Puts a dead letter back as a fresh job and forgets the answer it got.
-- KEYS dead, stream, verdict, queued   ARGV dead id, job id   -> new entry id, or false when it is gone
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then return false end
local kept = {}
for at = 1, #entry[2], 2 do
  local name = entry[2][at]
  if name:sub(1, 5) ~= 'dead.' and name ~= 'attempt' and name ~= 'queued_ms' and name ~= 'unreadable' then
    kept[#kept + 1], kept[#kept + 2] = name, entry[2][at + 1]
  end
end
local id = redis.call('XADD', KEYS[2], '*', unpack((merged({'job_id', ARGV[2]}, kept))))
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('XDEL', KEYS[1], ARGV[1])
return id
