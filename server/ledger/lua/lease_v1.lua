-- Become, or stay, the one node that drains the ledger's streams; or let another one.
--
-- KEYS[1]  the lease
-- ARGV[1]  the caller: the node's incarnation
-- ARGV[2]  how long the lease lasts, milliseconds; 0: give it back
--
-- {1 if the caller has it, now in milliseconds}
local have = redis.call('GET', KEYS[1])
local time = redis.call('TIME')
local now = string.format('%.0f', tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000))
if have and have ~= ARGV[1] then
  return {0, now}
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return {0, now}
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return {1, now}
