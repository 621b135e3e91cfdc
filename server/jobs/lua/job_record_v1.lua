-- Keep the result of an item: the first one counts, any other changes nothing.
--
-- KEYS[1…7]  the job
-- ARGV[1]  index
-- ARGV[2]  done · failed · cancelled · '' (it was never begun, and will not be: the job was stopped)
-- ARGV[3]  the line of the results
-- ARGV[4…7]  input, output, cached and reasoning tokens   ARGV[8]  nano-dollars, '' if no price is known
--
-- the job's status afterwards; nil if there is no such job
local status = redis.call('HGET', RECORD, 'status')
if not status or over(status) then
  return status
end
redis.call('ZREM', TAKEN, ARGV[1])
redis.call('ZREM', READY, ARGV[1])
if ARGV[2] ~= '' and redis.call('HSETNX', RESULTS, ARGV[1], ARGV[3]) == 1 then
  redis.call('HSET', STATES, ARGV[1], ARGV[2])
  redis.call('HDEL', ITEMS, ARGV[1])
  redis.call('HINCRBY', RECORD, ARGV[2], 1)
  for index, name in ipairs({'input', 'output', 'cached', 'reasoning', 'nano'}) do
    local amount = ARGV[3 + index]
    if amount ~= '' then
      redis.call('HINCRBY', RECORD, name, amount)
    end
  end
end
return finish(clock())
