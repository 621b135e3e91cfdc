-- Allocate an attempt before it is dispatched, so that a takeover knows what may have been spent.
--
-- KEYS[1]  record of the message
-- ARGV[1]  fence of the caller
-- ARGV[2]  number of the attempt
-- ARGV[3]  its description (target, model, start), kept as field `attempt:<number>`
--
-- One that Redis lost may be allocated again: after the next one it only adds its description.
--
-- 1 started · 2 started, but a cancel was requested · -1 fenced · -2 ended
local have = redis.call('HMGET', KEYS[1], 'fence', 'state', 'cancel', 'attempts')
if have[1] ~= ARGV[1] then
  return -1
end
if have[2] ~= 'admitting' and have[2] ~= 'queued' and have[2] ~= 'streaming' then
  return -2
end
redis.call('HSET', KEYS[1], 'state', 'streaming', 'attempt:' .. ARGV[2], ARGV[3])
if tonumber(have[4]) < tonumber(ARGV[2]) then
  redis.call('HSET', KEYS[1], 'attempts', ARGV[2])
end
if have[3] then
  return 2
end
return 1
