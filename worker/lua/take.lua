-- Reads new entries, the most urgent stream first, until `count` entries or `bytes` bytes are reached.
-- KEYS streams by priority   ARGV group, consumer, count, bytes
-- Returns {{{stream number, id, fields}, ...}, {stream number whose group is gone, ...}}. A stream whose key
-- holds something else is passed over: the others are read.
-- Redis 6.2 to 8.8 has no byte limit on a read. The steps below stand in for it: one entry at a time while entries are
-- large, up to 32 while they are small, so at most one step exceeds `bytes`.
local left, room, taken, groupless = tonumber(ARGV[3]), tonumber(ARGV[4]), {}, {}
for number, stream in ipairs(KEYS) do
  local step = 1
  while left > 0 and room > 0 do
    local want = math.min(step, left)
    local reply = redis.pcall('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', want, 'STREAMS', stream, '>')
    if not reply then break end
    if reply.err then
      if reply.err:find('NOGROUP', 1, true) then
        groupless[#groupless + 1] = number
      elseif not reply.err:find('WRONGTYPE', 1, true) and #taken == 0 then
        return reply -- the server's trouble, not this stream's
      end
      break
    end
    local entries, read = reply[1][2], 0
    for _, entry in ipairs(entries) do
      local fields, size = entry[2], 0
      for at = 1, #fields do size = size + #fields[at] end
      taken[#taken + 1] = {number, entry[1], fields}
      read = read + size
    end
    left, room = left - #entries, room - read
    if #entries < want then break end
    step = read / #entries < 4096 and math.min(step * 4, 32) or 1
  end
end
return {taken, groupless}
