-- Ends entries that we still own: answer, callback, dead letter, acknowledge and delete.
-- KEYS results, callbacks, dead, for each of these a key for what cannot be written there, streams ..., then one verdict
--      key per entry
-- ARGV group, consumer, number of streams, answer seconds, results kept; per stream how many of its entries end, and the
--      first and the last id of those; then per entry, stream by stream: id, job id, status ('' = no answer), body;
--      then for the few that have more: position, JSON {url, traceparent, burial}
-- Returns {positions refused because we own the entry no longer, positions whose job id had an answer already}.
-- Should the server refuse to write (out of memory), it does so before the first write: nothing is half done. Where
-- something else stands under one of the first three keys, what belongs there is kept beside it; see flush.lua.
local call, KEYS, ARGV = redis.call, KEYS, ARGV
local group, me, streams, seconds, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local refused, known, extras, n = {}, {}, {}, 0
local BEFORE = 6 -- keys before the streams'
local at = 6 + 3 * streams
for more = at + 4 * (#KEYS - BEFORE - streams), #ARGV, 2 do extras[tonumber(ARGV[more])] = cjson.decode(ARGV[more + 1]) end
local written = {} -- where results, callbacks and dead letters go today
for number = 1, 3 do
  written[number] = usable(KEYS[number], 'stream') and KEYS[number] or KEYS[3 + number]
  if not usable(written[number], 'stream') then return redis.error_reply('WRONGTYPE ' .. written[number]) end
end
local results, callbacks, dead = unpack(written)

local function bury(stream, id, facts)
  local entry, first = call('XRANGE', stream, id, id)[1], {}
  for name, value in pairs(facts) do
    first[#first + 1], first[#first + 2] = 'dead.' .. name, value
  end
  call('XADD', dead, '*', unpack((merged(first, entry and entry[2] or {}))))
end

-- Whether the job has no answer yet. What is no text under its key is none of ours, and would hide the answer.
local function put(key, body)
  return call('SET', key, body, 'EX', seconds, 'NX')
    or (call('TYPE', key).ok ~= 'string' and call('SET', key, body, 'EX', seconds))
end

local function answer(key, job, status, body, extra)
  local name, trace = status == 'ok' and 'verdict' or 'error', extra and extra.traceparent
  if trace then
    call('XADD', results, '*', 'job_id', job, 'status', status, name, body, 'traceparent', trace)
  else
    call('XADD', results, '*', 'job_id', job, 'status', status, name, body)
  end
  call('PUBLISH', key, body)
  if extra and extra.url then
    call('XADD', callbacks, '*', 'url', extra.url, 'job_id', job, 'body', body, 'traceparent', trace or '')
  end
end

for number = 1, streams do
  local stream, count, ended = KEYS[BEFORE + number], tonumber(ARGV[3 + 3 * number]), {}
  local mine = count > 0 and owned(stream, group, me, ARGV[4 + 3 * number], ARGV[5 + 3 * number])
  for _ = 1, count do
    n = n + 1
    local id, job, status, body, extra = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], extras[n]
    at = at + 4
    if not mine[id] then
      refused[#refused + 1] = n
    else
      local key = KEYS[BEFORE + streams + n]
      if status ~= '' and not put(key, body) then
        known[#known + 1] = n
      else
        if status ~= '' then answer(key, job, status, body, extra) end
        if extra and extra.burial then bury(stream, id, extra.burial) end
      end
      mine[id] = nil
      ended[#ended + 1] = id
    end
  end
  for from = 1, #ended, 1000 do -- unpack() takes about 8,000
    call('XACK', stream, group, unpack(ended, from, math.min(from + 999, #ended)))
    call('XDEL', stream, unpack(ended, from, math.min(from + 999, #ended)))
  end
end
call('XTRIM', results, 'MAXLEN', '~', kept)
return {refused, known}
