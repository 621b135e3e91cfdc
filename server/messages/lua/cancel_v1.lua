-- Ask for a stop. The owner hears of it by the channel, by its next append and by polling.
--
-- KEYS[1]  record of the message   KEYS[2]  shard channel
-- ARGV[1]  note to publish
--
-- {state, head, owner} as they stand; nothing for a message that does not exist
local have = redis.call('HMGET', KEYS[1], 'state', 'head', 'owner')
if not have[1] then
  return {}
end
if have[1] ~= 'done' and have[1] ~= 'failed' and have[1] ~= 'cancelled' then
  redis.call('HSET', KEYS[1], 'cancel', '1')
  redis.call('SPUBLISH', KEYS[2], ARGV[1])
end
return have
