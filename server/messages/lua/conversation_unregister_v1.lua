-- Take a conversation that came to nothing off its user's list, unless somebody has asked for it since.
--
-- KEYS[1]  the list: a sorted set by the time of the last change
-- ARGV[1]  conversation   ARGV[2]  the time that the caller has put there
--
-- how many were removed
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and tonumber(score) == tonumber(ARGV[2]) then
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
return 0
