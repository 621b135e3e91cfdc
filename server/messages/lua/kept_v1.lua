-- A message has ended: move it from the list of those that run to the list of those that are kept. Idempotent.
--
-- KEYS[1]  those that run, a set   KEYS[2]  those that are kept, a sorted set by the time they ended
-- ARGV[1]  how long what has ended is kept, seconds
-- ARGV[2…] messages
--
-- 1
local now = redis.call('TIME')[1]
redis.call('SREM', KEYS[1], unpack(ARGV, 2))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%d', tonumber(now) - tonumber(ARGV[1])))
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[2], now, ARGV[i])
end
redis.call('EXPIRE', KEYS[2], math.ceil(tonumber(ARGV[1])))
return 1
