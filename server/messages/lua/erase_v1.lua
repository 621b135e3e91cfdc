-- Erase what a message holds, as its conversation or all of its user's data is deleted. Its id stays used up: only a tombstone is left.
--
-- KEYS[1]  record   KEYS[2]  journal   KEYS[3]  standing text
-- ARGV[1]  the end event of the tombstone, packed
--
-- 1 erased, or there is nothing · 0 it has not ended yet
local state = redis.call('HGET', KEYS[1], 'state')
if state then
  if state ~= 'done' and state ~= 'failed' and state ~= 'cancelled' then
    return 0
  end
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if field == 'req' or field == 'history' or field == 'retry' or string.sub(field, 1, 8) == 'attempt:' then
      redis.call('HDEL', KEYS[1], field)
    end
  end
  redis.call('HSET', KEYS[1], 'state', 'failed', 'end', ARGV[1], 'standing', '\147\0\0\0', 'base', '0', 'retry', '')
end
redis.call('DEL', KEYS[2])
redis.call('DEL', KEYS[3])
return 1
