-- Say when a job is to be looked at.
--
-- KEYS[1]  the open jobs
-- ARGV[1]  tag   ARGV[2]  milliseconds from now   ARGV[3]  '1': only if it is on the list
local time = redis.call('TIME')
local due = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000) + tonumber(ARGV[2])
if ARGV[3] == '1' then
  return redis.call('ZADD', KEYS[1], 'XX', due, ARGV[1])
end
return redis.call('ZADD', KEYS[1], due, ARGV[1])
