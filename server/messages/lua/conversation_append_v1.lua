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
local count, bytes, changed = tonumber(have[4] or '0'), tonumber(have[5] or '0'), false

local function header(id)
  local found = {}
  for field in string.gmatch((redis.call('HGET', KEYS[2], id) or '||0|||0||0|') .. '|', '([^|]*)|') do
    found[#found + 1] = field
  end
  return found
end

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
  local entries, most = count + more, bytes + size
  for id in string.gmatch((have[10] or '') .. ',' .. (have[11] or ''), '[^,]+') do
    local waiting, its = string.match(redis.call('HGET', KEYS[6], id .. '#') or '0|0', '^(%d+)|(%d+)$')
    entries, most = entries + tonumber(waiting), most + tonumber(its)
  end
  if ARGV[6] ~= '' and entries > tonumber(ARGV[6]) then
    return {'over', 'entries'}
  end
  if ARGV[7] ~= '' and most > tonumber(ARGV[7]) then
    return {'over', 'bytes'}
  end
end
for _, i in ipairs(new) do
  local call, id = ARGV[i], ARGV[i + 1]
  for part = i + 7, i + 6 + 2 * tonumber(ARGV[i + 6]), 2 do
    redis.call('HSETNX', KEYS[8], ARGV[part], ARGV[part + 1])
  end
  local up = header(above)
  local jump = header(up[2])
  local far = header(jump[2])
  local to = above
  if up[3] - jump[3] == jump[3] - far[3] then
    to = jump[2]
  end
  redis.call('HSET', KEYS[2], id,
    table.concat({above, to, string.format('%d', up[3] + 1), 'tool', 'done', ARGV[i + 2], have[7] or '', ARGV[i + 3], up[9]}, '|'))
  redis.call('HSET', KEYS[3], id, ARGV[i + 4])
  local below = redis.call('HGET', KEYS[4], above)
  redis.call('HSET', KEYS[4], above, below and below .. ',' .. id or id)
  redis.call('HSET', KEYS[7], call, id)
  head = head + 1
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[3], string.format('%d-0', head), 'e',
    '{"parent":"' .. above .. '",' .. string.sub(ARGV[i + 5], 2))
  if tip == above then
    tip = id
  end
  count, bytes, above, changed = count + 1, bytes + tonumber(ARGV[i + 2]), id, true
end
if changed then
  redis.call('HSET', KEYS[1], 'head', head, 'updated', ARGV[1], 'tip', tip, 'answered', above, 'entries', count, 'bytes', bytes)
  for i = 1, 8 do
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
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
if changed then
  redis.call('SPUBLISH', KEYS[9], tostring(head))
end
return reply
