-- Renew the leases of items that a worker still has.
--
-- KEYS[1…7]  the job
-- ARGV[1]  lease, ms   ARGV[2…]  indices
--
-- '' · cancelled · expired (no new item is to be begun) · gone
local have = redis.call('HMGET', RECORD, 'status', 'stop')
if not have[1] or over(have[1]) then
  return 'gone'
end
local ends = clock() + tonumber(ARGV[1])
for index = 2, #ARGV do
  redis.call('ZADD', TAKEN, 'XX', ends, ARGV[index])
end
return have[2] or ''
