-- Begin no item any more.
--
-- KEYS[1…7]  the job
--
-- {} no such job · {status, index, …}: its status, and the items that are running
local status = redis.call('HGET', RECORD, 'status')
if not status then
  return {}
end
if over(status) then
  return {status}
end
redis.call('HSETNX', RECORD, 'stop', 'cancelled')
return {finish(clock()), unpack(redis.call('ZRANGE', TAKEN, 0, -1))}
