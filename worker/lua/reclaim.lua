-- Takes over entries whose lease ran out.
-- KEYS stream
-- ARGV group, consumer, lease in ms, start, count, bytes, attempts, 1 if a last attempt may be taken, ids in hand ...
-- Returns {where to go on, {{id, deliveries, fields}, ...}}.
-- An entry about to get its last attempt is a suspect: it may have killed every worker that held it. Suspects are held
-- one at a time, so that an entry that was merely near one is not condemned with it.
local stream, group, me, lease = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local room, attempts, last_allowed, held = tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8] == '1', {}
for at = 9, #ARGV do held[ARGV[at]] = true end
local pending = redis.call('XPENDING', stream, group, 'IDLE', lease, ARGV[4], '+', ARGV[5])
local taken, go_on = {}, #pending == tonumber(ARGV[5]) and '(' .. pending[#pending][1] or '-'
for _, row in ipairs(pending) do
  local id, deliveries = row[1], row[4]
  local suspect = deliveries + 1 == attempts
  if room > 0 and not (row[2] == me and held[id]) and (last_allowed or not suspect) then
    local entry = redis.call('XCLAIM', stream, group, me, lease, id)[1]
    if entry then
      for at = 1, #entry[2] do room = room - #entry[2][at] end
      if suspect then last_allowed = false end
      taken[#taken + 1] = {id, deliveries + 1, entry[2]}
    else -- deleted by its producer while pending; Redis 7 has dropped it by now, 6.2 has not
      redis.call('XACK', stream, group, id)
    end
  end
end
return {go_on, taken}
