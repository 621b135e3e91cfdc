-- Replace the shared condition of a target, if nobody else has since it was read, and tell every node.
--
-- KEYS[1]  the condition: hash of `v` (version) and `c` (packed)   KEYS[2]  shard channel of all conditions
-- ARGV[1]  version that was read; '0' for none
-- ARGV[2]  the next condition, packed
-- ARGV[3]  seconds by TIME before which it may not be (the end of a pause, the expiry of a lease); '0' for at once
-- ARGV[4]  name of the target, for the others   ARGV[5]  time to keep it, milliseconds
--
-- {1, time, version}                      replaced
-- {0, time, version, condition or ''}     it is another one by now
-- {-1, time, version, condition or ''}    too early by this server's clock
local t = redis.call('TIME')
local now = t[1] .. '.' .. string.format('%06d', t[2])
local have = redis.call('HMGET', KEYS[1], 'v', 'c')
local version = have[1] or '0'
if version ~= ARGV[1] then
  return {0, now, version, have[2] or ''}
end
if tonumber(now) < tonumber(ARGV[3]) then
  return {-1, now, version, have[2] or ''}
end
version = string.format('%d', tonumber(version) + 1)
redis.call('HSET', KEYS[1], 'v', version, 'c', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
redis.call('SPUBLISH', KEYS[2], now .. ' ' .. version .. ' ' .. string.format('%d', #ARGV[4]) .. ' ' .. ARGV[4] .. ARGV[2])
return {1, now, version}
