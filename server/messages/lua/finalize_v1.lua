-- Keep what stands at the end beside the journal, and start the clocks of both. Idempotent.
--
-- KEYS[1]  record   KEYS[2]  journal   KEYS[3]  standing text   KEYS[4]  where it was gathered
-- ARGV[1]  generation and run of the message, joined by ':'
-- ARGV[2]  lengths of text, reasoning and tool calls in the gathered bytes, packed
-- ARGV[3]  journal's time to live, milliseconds   ARGV[4]  the claim's, milliseconds
-- ARGV[5]  field of the record that tells of KEYS[4] (`gather_v1.lua`)
--
-- A failure that may be reopened keeps its journal as long as its claim: its text stands until something replaces it.
--
-- 1 finalized, now or before · 0 it is another generation or run, or has not ended
redis.call('HDEL', KEYS[1], ARGV[5])
local have = redis.call('HMGET', KEYS[1], 'gen', 'run', 'state', 'standing', 'retry')
if not have[1] or have[1] .. ':' .. have[2] ~= ARGV[1]
    or not (have[3] == 'done' or have[3] == 'failed' or have[3] == 'cancelled') then
  redis.call('DEL', KEYS[4])
  return 0
end
if have[4] then -- by a node that was faster, or erased: the journal that these bytes were gathered from may have been gone
  redis.call('DEL', KEYS[4])
  return 1
end
redis.call('HSET', KEYS[1], 'standing', ARGV[2])
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('RENAME', KEYS[4], KEYS[3])
end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('PEXPIRE', KEYS[3], ARGV[4])
redis.call('PEXPIRE', KEYS[2], have[5] == '1' and ARGV[4] or ARGV[3])
return 1
