-- A page of the results, in the order of the items.
--
-- KEYS[1…7]  the job
-- ARGV[1]  first index   ARGV[2]  most bytes, about   ARGV[3]  most items looked at
--
-- {} no such job · {status, stop, index of the next page or '', index, line or '', custom_id or '', …}
-- An item without a result is left out while the job has not ended.
local have = redis.call('HMGET', RECORD, 'status', 'stop', 'total')
if not have[1] then
  return {}
end
local reply, index, bytes, total = {have[1], have[2] or '', ''}, tonumber(ARGV[1]), 0, tonumber(have[3])
local stop = math.min(total, index + tonumber(ARGV[3]))
while index < stop and bytes < tonumber(ARGV[2]) do
  local line = redis.call('HGET', RESULTS, index)
  if line or over(have[1]) then
    reply[#reply + 1] = tostring(index)
    reply[#reply + 1] = line or ''
    reply[#reply + 1] = line and '' or redis.call('HGET', NAMES, index) or ''
    bytes = bytes + #(line or '')
  end
  index = index + 1
end
if index < total then
  reply[3] = tostring(index)
end
return reply
