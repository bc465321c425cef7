-- Makes our entries free for everybody at once, also those whose delivery never reached us.
-- KEYS stream   ARGV group, consumer, lease in ms, '*' or '-', ids ...
-- '*': all of ours, and the ids are those that were begun: their delivery counts. '-': only the ids, none was begun.
-- Returns how many.
local stream, group, me, lease, all = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '*'
local named, count, start = {}, 0, '-'
for at = 5, #ARGV do named[ARGV[at]] = true end
repeat
  local pending = redis.call('XPENDING', stream, group, start, '+', 1000, me)
  for _, row in ipairs(pending) do
    local id, deliveries = row[1], row[4]
    if all or named[id] then
      local counted = all and named[id] and deliveries or math.max(deliveries - 1, 0)
      redis.call('XCLAIM', stream, group, me, 0, id, 'IDLE', lease, 'RETRYCOUNT', counted, 'JUSTID')
      count = count + 1
    end
    start = '(' .. id
  end
until #pending < 1000
return count
