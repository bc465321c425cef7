-- Ends entries that we still own: answer, callback, dead letter, acknowledge and delete.
-- KEYS results, callbacks, dead, streams ..., then one verdict key per entry
-- ARGV group, consumer, number of streams, answer seconds, results kept; per stream how many of its entries end, and the
--      first and the last id of those; then per entry, stream by stream: id, job id, status ('' = no answer), body;
--      then for the few that have more: position, JSON {url, traceparent, burial}
-- Returns {positions refused because we own the entry no longer, positions whose job id had an answer already}.
-- Should the server refuse a write half-way (out of memory), entries stay pending, and those that have an answer are
-- known by it when the script is called again: still one answer, one callback and one dead letter each.
local call, KEYS, ARGV = redis.call, KEYS, ARGV
local group, me, streams, seconds, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local refused, known, extras, n = {}, {}, {}, 0
local at = 6 + 3 * streams
for more = at + 4 * (#KEYS - 3 - streams), #ARGV, 2 do extras[tonumber(ARGV[more])] = cjson.decode(ARGV[more + 1]) end

local function bury(stream, id, facts)
  local entry = call('XRANGE', stream, id, id)[1]
  local fields = entry and entry[2] or {}
  for at = #fields, 4001, -1 do fields[at] = nil end -- unpack() takes about 8,000
  for name, value in pairs(facts) do
    fields[#fields + 1], fields[#fields + 2] = 'dead.' .. name, value
  end
  call('XADD', KEYS[3], '*', unpack(fields))
end

local function answer(key, job, status, body, extra)
  local name, trace = status == 'ok' and 'verdict' or 'error', extra and extra.traceparent
  if trace then
    call('XADD', KEYS[1], '*', 'job_id', job, 'status', status, name, body, 'traceparent', trace)
  else
    call('XADD', KEYS[1], '*', 'job_id', job, 'status', status, name, body)
  end
  call('PUBLISH', key, body)
  if extra and extra.url then
    call('XADD', KEYS[2], '*', 'url', extra.url, 'job_id', job, 'body', body, 'traceparent', trace or '')
  end
end

for number = 1, streams do
  local stream, count, ended = KEYS[3 + number], tonumber(ARGV[3 + 3 * number]), {}
  local mine = count > 0 and owned(stream, group, me, ARGV[4 + 3 * number], ARGV[5 + 3 * number])
  for _ = 1, count do
    n = n + 1
    local id, job, status, body, extra = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], extras[n]
    at = at + 4
    if not mine[id] then
      refused[#refused + 1] = n
    else
      local key = KEYS[3 + streams + n]
      if status ~= '' and not call('SET', key, body, 'EX', seconds, 'NX') then
        known[#known + 1] = n
      else
        if status ~= '' then answer(key, job, status, body, extra) end
        if extra and extra.burial then bury(stream, id, extra.burial) end
      end
      mine[id] = nil
      ended[#ended + 1] = id
    end
  end
  if #ended > 0 then
    call('XACK', stream, group, unpack(ended))
    call('XDEL', stream, unpack(ended))
  end
end
call('XTRIM', KEYS[1], 'MAXLEN', '~', kept)
return {refused, known}
