-- Put before scripts that go on when a key is not ours to use.
-- Whether a key is absent or of our type; else somebody else's value stands under it, which we leave alone.
local function usable(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

