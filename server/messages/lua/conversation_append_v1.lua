-- Add entries outside of any turn: answers to tool calls, each once; or what stands for the lost ones. They hang below
-- the answer that called the tools, or below the last result of it, also if another branch has been chosen since.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
-- ARGV[1]  now, Unix seconds   ARGV[2]  time to live of the conversation, milliseconds
-- ARGV[3]  events kept in the log, about
-- ARGV[4]  '1': only if the time for answers is over
-- ARGV[5]  the message whose calls they answer; another one's are left alone
-- ARGV[6]  most entries   ARGV[7]  most bytes: of the conversation with all that waits in it; '' any
-- ARGV[8…] of each: tool call id, entry id, bytes, tokens, body, event, how many large parts it has, and of each part
--          its hash and its bytes, which are written only if the result is
--
-- {'over', 'entries' or 'bytes'}: the limit does not allow it, and nothing was written
-- {'deleted'}   {'appended', open call, …}: the calls that are still open
local have = redis.call('HMGET', KEYS[1], 'deleted', 'tip', 'head', 'entries', 'bytes', 'due', 'turn', 'asker', 'answered',
  'current', 'queue')
if have[1] then
  return {'deleted'}
end
local tip, above, head = have[2] or '', have[9] or have[8], tonumber(have[3] or '0')
local count, bytes = tonumber(have[4] or '0'), tonumber(have[5] or '0')

local late = have[6] and tonumber(have[6]) <= tonumber(ARGV[1])
local new, named = {}, {}  -- where in ARGV those begin that are recorded now
local more, size = 0, 0
local i = 8
while have[8] == ARGV[5] and i <= #ARGV do
  local call, id = ARGV[i], ARGV[i + 1]
  if not named[call] and redis.call('HGET', KEYS[7], call) == '' and redis.call('HEXISTS', KEYS[2], id) == 0
      and (ARGV[4] == '' or late) then
    new[#new + 1], named[call] = i, true
    more, size = more + 1, size + tonumber(ARGV[i + 2])
  end
  i = i + 7 + 2 * tonumber(ARGV[i + 6])
end
if more > 0 then
  local refusal = over(count + more, bytes + size, (have[10] or '') .. ',' .. (have[11] or ''), ARGV[6], ARGV[7])
  if refusal then
    return refusal
  end
end
for _, i in ipairs(new) do
  local call, id = ARGV[i], ARGV[i + 1]
  for part = i + 7, i + 6 + 2 * tonumber(ARGV[i + 6]), 2 do
    redis.call('HSETNX', KEYS[8], ARGV[part], ARGV[part + 1])
  end
  hang(id, above, 'tool', 'done', ARGV[i + 2], have[7] or '', ARGV[i + 3], header(above)[9], ARGV[i + 4])
  redis.call('HSET', KEYS[7], call, id)
  head = log(head, ARGV[3], '{"parent":"' .. above .. '",' .. string.sub(ARGV[i + 5], 2))
  if tip == above then
    tip = id
  end
  above = id
end
if more > 0 then
  redis.call('HSET', KEYS[1], 'tip', tip, 'answered', above, 'entries', count + more, 'bytes', bytes + size)
  changed(head, ARGV[1], ARGV[2])
end
local reply, calls = {'appended'}, redis.call('HGETALL', KEYS[7])
for i = 1, #calls, 2 do
  if calls[i + 1] == '' then
    reply[#reply + 1] = calls[i]
  end
end
if #reply == 1 then
  redis.call('HDEL', KEYS[1], 'due')
end
return reply
