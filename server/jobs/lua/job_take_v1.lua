-- Take items to run them. Leases that ended are given back first: their workers are gone.
--
-- KEYS[1…7]  the job
-- ARGV[1]  most items   ARGV[2]  lease, ms
--
-- {'gone'}           there is no such job
-- {'over'}           it has ended
-- {'open', stop, wait, index, item, …}
--     stop  '' · cancelled · expired: what is handed out now only has to be brought to its end
--     wait  milliseconds until there may be more to take
local have = redis.call('HMGET', RECORD, 'status', 'total', 'next', 'stop', 'deadline', 'keep')
if not have[1] then
  return {'gone'}
end
if over(have[1]) then
  return {'over'}
end
local now, most, lease, stop = clock(), tonumber(ARGV[1]), tonumber(ARGV[2]), have[4]
if not stop and now >= tonumber(have[5]) then
  stop = 'expired'
  redis.call('HSET', RECORD, 'stop', stop)
end
for _, index in ipairs(redis.call('ZRANGEBYSCORE', TAKEN, '-inf', now)) do
  redis.call('ZREM', TAKEN, index)
  redis.call('ZADD', READY, now, index)
end
local picked = redis.call('ZRANGEBYSCORE', READY, '-inf', stop and '+inf' or now, 'LIMIT', 0, most)
for _, index in ipairs(picked) do
  redis.call('ZREM', READY, index)
end
local total, fresh = tonumber(have[2]), tonumber(have[3])
while not stop and #picked < most and fresh < total do
  picked[#picked + 1] = tostring(fresh)
  fresh = fresh + 1
end
local reply = {'open', stop or '', 0}
for _, index in ipairs(picked) do
  redis.call('ZADD', TAKEN, now + lease, index)
  reply[#reply + 1] = index
  reply[#reply + 1] = redis.call('HGET', ITEMS, index) or ''
end
if #picked > 0 then
  redis.call('HSET', RECORD, 'next', int(fresh), 'status', 'running')
  keep(int(math.max(tonumber(have[5]) - now, 0) + tonumber(have[6])))
elseif over(finish(now)) then
  return {'over'}
end
if stop or fresh >= total then
  local wait = lease
  for _, key in ipairs({READY, TAKEN}) do
    local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    if first[2] then
      wait = math.min(wait, math.max(tonumber(first[2]) - now, 0))
    end
  end
  reply[3] = wait
end
return reply
