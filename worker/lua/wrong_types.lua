-- KEYS any   ARGV the type that each must have   -> {position, the type it has, ...} of those that hold something else
local wrong = {}
for at, key in ipairs(KEYS) do
  if not usable(key, ARGV[at]) then
    wrong[#wrong + 1], wrong[#wrong + 2] = at, redis.call('TYPE', key).ok
  end
end
return wrong
