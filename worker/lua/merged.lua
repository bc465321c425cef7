-- Put before every script that copies an entry.
-- XADD wants all fields in one call and unpack() takes about 8,000 values, so a copy is cut here. A job has far fewer
-- fields: more than MOST_FIELDS of worker/jobs.py are refused.
local MOST_COPIED = 2000 -- names and values
-- The fields `first`, then those of `flat`: each name once, with its last value, as the worker reads an entry.
-- The second result tells whether some had to be left out.
local function merged(first, flat)
  local seen, kept, fields = {}, {}, {}
  for at = 1, #first, 2 do
    seen[first[at]] = true
    fields[at], fields[at + 1] = first[at], first[at + 1]
  end
  for at = #flat - 1, 1, -2 do
    if not seen[flat[at]] then
      seen[flat[at]] = true
      kept[#kept + 1] = at
    end
  end
  for number = #kept, 1, -1 do
    if #fields >= MOST_COPIED then return fields, true end
    fields[#fields + 1], fields[#fields + 2] = flat[kept[number]], flat[kept[number] + 1]
  end
  return fields, false
end

