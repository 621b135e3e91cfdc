-- Delete a conversation, in two calls: first close it to everybody, and, when its messages are erased, empty it.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
-- ARGV[1]  close or empty   ARGV[2]  how long the id stays used up, milliseconds
--
-- close: {} there is none, or {'closed', message, …}: every message that ever had a turn here, waited or waits
-- empty: {}
if ARGV[1] == 'empty' then
  for i = 1, 8 do
    redis.call('DEL', KEYS[i])
  end
  redis.call('HSET', KEYS[1], 'deleted', '1')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('SPUBLISH', KEYS[9], 'deleted')
  return {}
end
local have = redis.call('HMGET', KEYS[1], 'created', 'current', 'queue', 'deleted')
if not have[1] then
  return {}
end
redis.call('HSET', KEYS[1], 'deleted', '1')
local seen = {}
if have[2] and have[2] ~= '' then
  seen[have[2]] = true
end
for id in string.gmatch(have[3] or '', '[^,]+') do
  seen[id] = true
end
local headers = redis.call('HGETALL', KEYS[2])
for i = 2, #headers, 2 do
  local message = string.match(headers[i], '|([^|]*)$')
  if message and message ~= '' then
    seen[message] = true
  end
end
for _, field in ipairs(redis.call('HKEYS', KEYS[6])) do
  if string.sub(field, 1, 1) == '~' then
    seen[string.sub(field, 2)] = true
  end
end
local messages = {'closed'}
for id in pairs(seen) do
  messages[#messages + 1] = id
end
return messages
