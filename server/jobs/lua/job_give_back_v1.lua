-- Give items back that have no end yet: they are taken again later, by whoever has room.
--
-- KEYS[1…7]  the job
-- ARGV[1]  from when on, ms from now   ARGV[2…]  indices
--
-- how many were given back
local ready, count = clock() + tonumber(ARGV[1]), 0
for index = 2, #ARGV do
  if redis.call('ZREM', TAKEN, ARGV[index]) == 1 then
    redis.call('ZADD', READY, ready, ARGV[index])
    count = count + 1
  end
end
return count
