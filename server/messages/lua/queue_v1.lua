-- The message waits for its turn in a conversation.
--
-- KEYS[1]  record of the message
-- ARGV[1]  fence of the caller
--
-- 1 waiting · 2 waiting, but a cancel was requested · -1 fenced · -2 ended or streaming
local have = redis.call('HMGET', KEYS[1], 'fence', 'state', 'cancel')
if have[1] ~= ARGV[1] then
  return -1
end
if have[2] ~= 'admitting' and have[2] ~= 'queued' then
  return -2
end
redis.call('HSET', KEYS[1], 'state', 'queued')
return have[3] and 2 or 1
