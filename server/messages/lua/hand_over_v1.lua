-- Give away a message that waits and has not begun upstream: its owner leaves, whoever looks after the heir takes it over.
--
-- KEYS[1]  record of the message   KEYS[2]  shard channel
-- ARGV[1]  the caller's fence   ARGV[2]  the heir: an incarnation that nobody runs   ARGV[3]  note to publish
--
-- 1 given away · 0 it has begun or ended, or has another owner
local have = redis.call('HMGET', KEYS[1], 'fence', 'state')
if have[1] ~= ARGV[1] or have[2] ~= 'queued' then
  return 0
end
local counter, rest = string.match(have[1], '^(%d+):[^:]*(.*)$')
redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'fence', string.format('%d:%s%s', tonumber(counter) + 1, ARGV[2], rest))
redis.call('SPUBLISH', KEYS[2], ARGV[3])
return 1
