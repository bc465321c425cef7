-- Reads new entries, the most urgent stream first, until `count` entries or `bytes` bytes are reached.
-- KEYS streams by priority   ARGV group, consumer, count, bytes   -> {{stream number, id, fields, bytes}, ...}
-- Redis 6.2 to 8.8 has no byte limit on a read. The steps below stand in for it: one entry at a time while entries are
-- large, up to 32 while they are small, so at most one step exceeds `bytes`.
local left, room, taken = tonumber(ARGV[3]), tonumber(ARGV[4]), {}
for number, stream in ipairs(KEYS) do
  local step = 1
  while left > 0 and room > 0 do
    local want = math.min(step, left)
    local reply = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', want, 'STREAMS', stream, '>')
    if not reply then break end
    local entries, read = reply[1][2], 0
    for _, entry in ipairs(entries) do
      local fields, size = entry[2], 0
      for at = 1, #fields do size = size + #fields[at] end
      taken[#taken + 1] = {number, entry[1], fields, size}
      read = read + size
    end
    left, room = left - #entries, room - read
    if #entries < want then break end
    step = read / #entries < 4096 and math.min(step * 4, 32) or 1
  end
end
return taken
