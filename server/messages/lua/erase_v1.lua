-- Erase what a message holds, as its conversation or all of its user's data is deleted. Its id stays used up: only a
-- tombstone is left, with what the books need and without a word of the user.
--
-- KEYS[1]  record   KEYS[2]  journal   KEYS[3]  standing text
-- KEYS[4…] where it was gathered, as far as the caller has seen
-- ARGV[1]  the end event of the tombstone, packed
--
-- 1 erased, or there is nothing · 0 it has not ended yet · 2 it is gathered elsewhere too: look again
local state = redis.call('HGET', KEYS[1], 'state')
if state then
  if state ~= 'done' and state ~= 'failed' and state ~= 'cancelled' then
    return 0
  end
  local fields, gathered = redis.call('HKEYS', KEYS[1]), 0
  for _, field in ipairs(fields) do
    gathered = gathered + (string.sub(field, 1, 7) == 'gather:' and 1 or 0)
  end
  if gathered ~= #KEYS - 3 then
    return 2
  end
  for _, field in ipairs(fields) do
    if field == 'req' or field == 'history' or field == 'retry' or field == 'origin' or string.sub(field, 1, 7) == 'gather:' or string.sub(field, 1, 8) == 'attempt:' then
      redis.call('HDEL', KEYS[1], field)
    end
  end
  redis.call('HSET', KEYS[1], 'state', 'failed', 'end', ARGV[1], 'standing', '\147\0\0\0', 'base', '0', 'retry', '')
end
for i = 2, #KEYS do
  redis.call('DEL', KEYS[i])
end
return 1
