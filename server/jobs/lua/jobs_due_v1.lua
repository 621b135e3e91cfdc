-- The job to look at next; whoever else asks meanwhile gets another.
--
-- KEYS[1]  the open jobs
-- ARGV[1]  how long nobody else looks at it, ms
--
-- tag; nil if none is due
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local found = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)
if not found[1] then
  return nil
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), found[1])
return found[1]
