-- Give a message its turn in a conversation, or its place in the queue. Idempotent by message and token.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
-- ARGV[1]  message   ARGV[2]  its token: generation and run, joined by ':'
-- ARGV[3]  if the conversation is busy: queue, reject, interrupt or rollback
-- ARGV[4]  now, Unix seconds   ARGV[5]  time to live of the conversation, milliseconds
-- ARGV[6]  events kept in the log, about   ARGV[7]  most queued messages
-- ARGV[8]  entry below which the input hangs; '' the tip of the chosen branch, '.' the root
-- ARGV[9]  most entries   ARGV[10]  most bytes: of the conversation with all that waits in it; '' any
-- ARGV[11]  how many large parts the new entries have   ARGV[12…] two of each: its hash, its bytes
-- then     seven of each new entry, the last one being the answer, whose id is the message's:
--          id, role, '1' if pinned, bytes, tokens, body, event (JSON objects; the parent is put into the event here)
--
-- Parts are written with the entries that refer to them: nothing stays of what is refused, or taken back as it waits.
--
-- {'current', parent}   the turn is the caller's; `parent` is what the answer hangs below; then 'made' if this made the
--                       conversation
-- {'queued', position, current}   {'ended', state}
-- {'busy', current}  {'full'}  {'deleted'}  {'parent'}: there is no such entry  {'taken'}: an entry has this id
-- {'over', 'entries' or 'bytes'}: the limit does not allow it
-- {'stale', token}   another claim of this id, which Redis has lost, stands here: withdraw it first
local have = redis.call('HMGET', KEYS[1], 'deleted', 'current', 'turn', 'tip', 'head', 'queue', 'entries', 'bytes', 'pins')
if have[1] then
  return {'deleted'}
end
local m, token = ARGV[1], ARGV[2]
local current, tip, queue = have[2] or '', have[4] or '', have[6] or ''
local head, count, bytes = tonumber(have[5] or '0'), tonumber(have[7] or '0'), tonumber(have[8] or '0')
local first = 12 + 2 * tonumber(ARGV[11])
local more, size = (#ARGV - first + 1) / 7, 0
for i = first, #ARGV, 7 do
  size = size + tonumber(ARGV[i + 3])
end

local function tell(event)
  head = log(head, ARGV[6], event)
end

local function refusal()
  return over(count + more, bytes + size, current .. ',' .. queue, ARGV[9], ARGV[10])
end

local function finish(reply)
  local made = redis.call('HSETNX', KEYS[1], 'created', ARGV[4])
  changed(head, ARGV[4], ARGV[5])
  if reply and made == 1 then
    reply[#reply + 1] = 'made'
  end
  return reply
end

local parent = ARGV[8]
local known = redis.call('HEXISTS', KEYS[2], m) == 1
local old = header(m)
if known and old[4] ~= 'assistant' then
  return {'taken'}
end
if known and old[5] ~= 'running' and old[7] == token then
  return {'ended', old[5]}
end

local waits = redis.call('HGET', KEYS[6], m)
if not known and not waits and parent ~= '' and parent ~= '.' and redis.call('HEXISTS', KEYS[2], parent) == 0 then
  return {'parent'}  -- one that waits is told when its turn comes
end
if waits and waits ~= token then
  return {'stale', waits}
end
if current == m and have[3] ~= token then
  return {'stale', have[3]}
end
if waits or (current ~= '' and current ~= m) then
  if not waits then
    if ARGV[3] == 'reject' then
      return {'busy', current}
    end
    local ahead, behind, waiting, urgent = {}, {}, 0, ARGV[3] == 'interrupt' or ARGV[3] == 'rollback'
    for id in string.gmatch(queue, '[^,]+') do
      waiting = waiting + 1
      if urgent and redis.call('HEXISTS', KEYS[6], id .. '!') == 0 then
        behind[#behind + 1] = id
      else
        ahead[#ahead + 1] = id
      end
    end
    if waiting >= tonumber(ARGV[7]) then
      return {'full'}
    end
    local refused = not known and refusal()
    if refused then
      return refused
    end
    ahead[#ahead + 1] = m
    for _, id in ipairs(behind) do
      ahead[#ahead + 1] = id
    end
    queue = table.concat(ahead, ',')
    redis.call('HSET', KEYS[1], 'queue', queue)
    redis.call('HSET', KEYS[6], m, token, m .. '#', string.format('%d|%d', known and 0 or more, known and 0 or size))
    if urgent then
      redis.call('HSET', KEYS[6], m .. '!', ARGV[3])
      redis.call('HSET', KEYS[1], 'stop', current)
      if ARGV[3] == 'rollback' then
        redis.call('HSET', KEYS[1], 'undo', current)
      end
    end
    tell(queue_event(current, queue))
    finish()
  end
  local position = 0
  for id in string.gmatch(queue, '[^,]+') do
    position = position + 1
    if id == m then
      break
    end
  end
  return {'queued', position, current}
end

if known and old[7] == token then
  return {'current', old[1]}
end
redis.call('HDEL', KEYS[6], m .. '#')
if known then  -- a failure that was reopened: the same entry is answered again
  old[5], old[7] = 'running', token
  redis.call('HSET', KEYS[2], m, table.concat(old, '|'))
  redis.call('HSET', KEYS[1], 'current', m, 'turn', token)
  tell('{"parent":"' .. old[1] .. '",' .. string.sub(ARGV[#ARGV], 2))
  return finish({'current', old[1]})
end

local above = parent == '' and tip or parent == '.' and '' or parent
local pins = have[9] or ''
for i = first, #ARGV, 7 do
  local id = ARGV[i]
  if redis.call('HEXISTS', KEYS[2], id) == 1 then
    return {'taken'}
  end
end
local refused = current ~= m and refusal()  -- what had to wait was let in before
if refused then
  return refused
end
for i = 12, first - 1, 2 do
  redis.call('HSETNX', KEYS[8], ARGV[i], ARGV[i + 1])
end
for i = first, #ARGV, 7 do
  local id = ARGV[i]
  hang(id, above, ARGV[i + 1], id == m and 'running' or 'done', ARGV[i + 3], token, ARGV[i + 4], m, ARGV[i + 5])
  if ARGV[i + 2] == '1' then
    pins = pins == '' and id or pins .. ',' .. id
  end
  tell('{"parent":' .. (above == '' and 'null' or '"' .. above .. '"') .. ',' .. string.sub(ARGV[i + 6], 2))
  above = id
end
redis.call('HSET', KEYS[1], 'current', m, 'turn', token, 'tip', m, 'entries', count + more, 'bytes', bytes + size,
  'pins', pins)
redis.call('HDEL', KEYS[1], 'due', 'asker', 'answered')
redis.call('DEL', KEYS[7])
return finish({'current', header(m)[1]})
