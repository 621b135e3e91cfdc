-- What is left, without changing anything.
--
-- KEYS     for each owner: bucket, leases, amounts (see common_v1.lua), behind the clock of the tag
-- ARGV     of each owner six as in reserve_v1.lua
--
-- {now, …show of each owner}
local time = redis.call('TIME')
local seen = tonumber(redis.call('HGET', KEYS[1], 'seen')) or 0
local now = math.max(tonumber(time[1]) * 1000000 + tonumber(time[2]), seen)
local reply = {int(now)}
for i = 1, (#KEYS - 1) / 3 do
  show(reply, owner_at(3 * i - 1, 6 * i - 5, now))
end
return reply
