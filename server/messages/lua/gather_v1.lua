-- Append to what stands of an ended message, which one node gathers before it is finalized; the record knows of it, so that
-- a deletion finds it, also when that node has died over it.
--
-- KEYS[1]  record   KEYS[2]  where it is gathered
-- ARGV[1]  generation and run of the message, joined by ':'
-- ARGV[2]  field of the record: 'gather:' and how that key ends   ARGV[3]  bytes   ARGV[4]  their time to live, milliseconds
--
-- 1 appended · 0 it is finalized or erased, or another generation or run: nothing is kept
local have = redis.call('HMGET', KEYS[1], 'gen', 'run', 'standing')
if not have[1] or have[3] or have[1] .. ':' .. have[2] ~= ARGV[1] then
  redis.call('DEL', KEYS[2])
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], '')
redis.call('APPEND', KEYS[2], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
