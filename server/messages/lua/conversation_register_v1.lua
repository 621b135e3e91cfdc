-- Put a conversation on its user's list, if the limit allows it.
--
-- KEYS[1]  the list: a sorted set by the time of the last change
-- ARGV[1]  conversation   ARGV[2]  now, Unix seconds   ARGV[3]  seconds that conversations are kept   ARGV[4]  most of them
--
-- 1 listed · 0 there are too many
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', tonumber(ARGV[2]) - tonumber(ARGV[3]))
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[4]) then
  return 0
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[3])))
return 1
