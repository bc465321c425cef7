-- Moves what could not be written under its own key, and was kept beside it, to where it belongs.
-- KEYS target, kept aside, target, kept aside, ...   ARGV most to move of each   -> how many
local count = 0
for at = 1, #KEYS, 2 do
  local target, aside = KEYS[at], KEYS[at + 1]
  if usable(target, 'stream') and usable(aside, 'stream') then
    for _, entry in ipairs(redis.call('XRANGE', aside, '-', '+', 'COUNT', ARGV[1])) do
      redis.call('XADD', target, '*', unpack((merged({}, entry[2]))))
      redis.call('XDEL', aside, entry[1])
      count = count + 1
    end
  end
end
return count
