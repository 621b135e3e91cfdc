-- Take a claim back that was not admitted: the id is free again, whoever attached hears why.
--
-- Also one that was queued, or whose first attempt was allocated, by a call that was given up and still happened:
-- nothing was dispatched. Unless somebody has attached to it since, and was told that it is accepted.
--
-- KEYS[1]  record of the message   KEYS[2]  shard channel
-- ARGV[1]  generation of the claim
-- ARGV[2]  note to publish
-- ARGV[3]  fence of the claim; `1:<node>:<generation>` for a caller that never learned it. One that was adopted since is not undone
--
-- 1 released · 0 it is no longer this claim, or it is promised
local have = redis.call('HMGET', KEYS[1], 'gen', 'state', 'head', 'fence', 'run', 'attached')
if have[1] ~= ARGV[1] or have[3] ~= '0' or have[4] ~= ARGV[3] or have[5] ~= '1' or have[6]
    or (have[2] ~= 'admitting' and have[2] ~= 'queued' and have[2] ~= 'streaming') then
  return 0
end
redis.call('DEL', KEYS[1])
redis.call('SPUBLISH', KEYS[2], ARGV[2])
return 1
