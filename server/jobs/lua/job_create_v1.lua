-- Make a job of what was uploaded, or tell what stands under its id.
--
-- KEYS[1…7]  the job     KEYS[8], KEYS[9]  uploaded items and names
-- ARGV[1]  fingerprint   ARGV[2]  longest time it may run, ms   ARGV[3]  how long it is kept after its end, ms
-- ARGV[4]  how many items   ARGV[5…]  field, value, … of the record
--
-- 'new' · 'have' the same job, made before · 'mismatch' another job stands under this id · 'lost' the upload has expired
local have = redis.call('HGET', RECORD, 'fp')
if have then
  redis.call('DEL', KEYS[8], KEYS[9])
  return have == ARGV[1] and 'have' or 'mismatch'
end
if redis.call('HLEN', KEYS[8]) ~= tonumber(ARGV[4]) then
  redis.call('DEL', KEYS[8], KEYS[9])
  return 'lost'
end
local now = clock()
redis.call('DEL', ITEMS, NAMES, RESULTS, STATES, READY, TAKEN)
redis.call('RENAME', KEYS[8], ITEMS)
if redis.call('EXISTS', KEYS[9]) == 1 then
  redis.call('RENAME', KEYS[9], NAMES)
end
redis.call('HSET', RECORD, 'fp', ARGV[1], 'status', 'queued', 'total', ARGV[4], 'next', '0', 'done', '0', 'failed', '0',
  'cancelled', '0', 'input', '0', 'output', '0', 'cached', '0', 'reasoning', '0', 'created', int(now),
  'deadline', int(now + tonumber(ARGV[2])), 'keep', ARGV[3], unpack(ARGV, 5))
keep(int(tonumber(ARGV[2]) + tonumber(ARGV[3])))
return 'new'
