-- Starts the lease of our entries anew. JUSTID: renewing is not a delivery.
-- KEYS stream   ARGV group, consumer, ids ...   -> ids that we own no longer
local mine, lost, ours = {}, {}, owned(KEYS[1], ARGV[1], ARGV[2], '-', '+')
for at = 3, #ARGV do table.insert(ours[ARGV[at]] and mine or lost, ARGV[at]) end
for from = 1, #mine, 1000 do
  local command = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0}
  for at = from, math.min(from + 999, #mine) do command[#command + 1] = mine[at] end
  command[#command + 1] = 'JUSTID'
  redis.call(unpack(command))
end
return lost
