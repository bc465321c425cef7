-- Ends entries that we still own: answer, callback, dead letter, acknowledge and delete.
-- KEYS results, callbacks, dead, streams ..., then one verdict key per entry
-- ARGV group, consumer, number of streams, answer seconds, results kept; per stream the first and the last id, or '';
--      then per entry: stream number, id, job id, status ('' = no answer), body, '' or JSON {url, traceparent, burial}
-- Returns {positions refused because we own the entry no longer, positions whose job id had an answer already}.
-- Should the server refuse a write half-way (out of memory), entries stay pending, and those that have an answer are
-- known by it when the script is called again: still one answer, one callback and one dead letter each.
local call, KEYS, ARGV = redis.call, KEYS, ARGV
local group, me, streams, seconds, kept = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[5]
local mine, ended, refused, known = {}, {}, {}, {}
for number = 1, streams do
  local first, last = ARGV[4 + 2 * number], ARGV[5 + 2 * number]
  mine[number] = first ~= '' and owned(KEYS[3 + number], group, me, first, last) or {}
  ended[number] = {}
end

local function bury(stream, id, facts)
  local entry = call('XRANGE', stream, id, id)[1]
  local fields = entry and entry[2] or {}
  for at = #fields, 4001, -1 do fields[at] = nil end -- unpack() takes about 8,000
  for name, value in pairs(facts) do
    fields[#fields + 1], fields[#fields + 2] = 'dead.' .. name, value
  end
  call('XADD', KEYS[3], '*', unpack(fields))
end

local at = 6 + 2 * streams
for n = 1, #KEYS - 3 - streams do
  local number, id, job, status, body, extra = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  at = at + 6
  if not mine[number][id] then
    refused[#refused + 1] = n
  else
    local key = KEYS[3 + streams + n]
    if extra == '' then
      extra = nil
    else
      extra = cjson.decode(extra)
    end
    if status ~= '' and not call('SET', key, body, 'EX', seconds, 'NX') then
      known[#known + 1] = n
    else
      if status ~= '' then
        local name, trace = status == 'ok' and 'verdict' or 'error', extra and extra.traceparent
        if trace then
          call('XADD', KEYS[1], 'MAXLEN', '~', kept, '*', 'job_id', job, 'status', status, name, body, 'traceparent', trace)
        else
          call('XADD', KEYS[1], 'MAXLEN', '~', kept, '*', 'job_id', job, 'status', status, name, body)
        end
        call('PUBLISH', key, body)
        if extra and extra.url then
          call('XADD', KEYS[2], '*', 'url', extra.url, 'job_id', job, 'body', body, 'traceparent', trace or '')
        end
      end
      if extra and extra.burial then bury(KEYS[3 + number], id, extra.burial) end
    end
    mine[number][id] = nil
    local list = ended[number]
    list[#list + 1] = id
  end
end
for number = 1, streams do
  if #ended[number] > 0 then
    call('XACK', KEYS[3 + number], group, unpack(ended[number]))
    call('XDEL', KEYS[3 + number], unpack(ended[number]))
  end
end
return {refused, known}
