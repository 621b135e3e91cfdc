-- Set which share of users a version of a prompt is for, and note who did it.
--
-- KEYS[1] shares  [2] audit log  [3] channel
-- ARGV[1]  name@version   ARGV[2]  per cent   ARGV[3]  what stood before if nothing was set: the file's own, per cent
-- ARGV[4]  who   ARGV[5]  why: rollout or rollback   ARGV[6]  now, Unix seconds   ARGV[7]  steps kept in the log, about
--
-- the share that stood before
local before = redis.call('HGET', KEYS[1], ARGV[1]) or ARGV[3]
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[7], '*', 'prompt', ARGV[1], 'from', before, 'to', ARGV[2],
  'who', ARGV[4], 'what', ARGV[5], 'at', ARGV[6])
redis.call('SPUBLISH', KEYS[3], ARGV[1])
return before
