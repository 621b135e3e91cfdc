-- Take a claim back whose admission was refused: the id is free again, whoever attached hears why.
--
-- KEYS[1]  record of the message   KEYS[2]  shard channel
-- ARGV[1]  generation of the claim
-- ARGV[2]  note to publish
--
-- 1 released · 0 it is no longer this claim
local have = redis.call('HMGET', KEYS[1], 'gen', 'state')
if have[1] ~= ARGV[1] or have[2] ~= 'admitting' then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SPUBLISH', KEYS[2], ARGV[2])
return 1
