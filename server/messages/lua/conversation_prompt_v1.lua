-- Note which version of a prompt a conversation has from now on.
--
-- KEYS[1]  meta of the conversation
-- ARGV[1]  field, `prompt:<name>`   ARGV[2]  version
--
-- 1 noted · 0 there is no such conversation (any more)
local have = redis.call('HMGET', KEYS[1], 'created', 'deleted')
if not have[1] or have[2] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
