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
local head = tonumber(have[5] or '0')

local function log(event)
  head = head + 1
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[6], string.format('%d-0', head), 'e', event)
end

local function log_queue()
  local ids = {}
  for id in string.gmatch(queue, '[^,]+') do
    ids[#ids + 1] = '"' .. id .. '"'
  end
  log('{"type":"conversation","op":"queue","current":"' .. current .. '","queue":[' .. table.concat(ids, ',') .. ']}')
end

local first = 12 + 2 * tonumber(ARGV[11])

local function over()
  -- Entries and bytes of all that waits, or has the turn and has not used it yet, stand as good as entered.
  local count, bytes = tonumber(have[7] or '0') + (#ARGV - first + 1) / 7, tonumber(have[8] or '0')
  for i = first, #ARGV, 7 do
    bytes = bytes + tonumber(ARGV[i + 3])
  end
  for id in string.gmatch(current .. ',' .. queue, '[^,]+') do
    local entries, size = string.match(redis.call('HGET', KEYS[6], id .. '#') or '0|0', '^(%d+)|(%d+)$')
    count, bytes = count + tonumber(entries), bytes + tonumber(size)
  end
  if ARGV[9] ~= '' and count > tonumber(ARGV[9]) then
    return {'over', 'entries'}
  end
  return ARGV[10] ~= '' and bytes > tonumber(ARGV[10]) and {'over', 'bytes'} or nil
end

local function finish(reply)
  redis.call('HSET', KEYS[1], 'head', head, 'updated', ARGV[4])
  local made = redis.call('HSETNX', KEYS[1], 'created', ARGV[4])
  for i = 1, 8 do
    redis.call('PEXPIRE', KEYS[i], ARGV[5])
  end
  redis.call('SPUBLISH', KEYS[9], tostring(head))
  if reply and made == 1 then
    reply[#reply + 1] = 'made'
  end
  return reply
end

local function header(id)
  local found = {}
  for field in string.gmatch((redis.call('HGET', KEYS[2], id) or '||0|||0||0|') .. '|', '([^|]*)|') do
    found[#found + 1] = field
  end
  return found
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
    local ahead, behind, count, urgent = {}, {}, 0, ARGV[3] == 'interrupt' or ARGV[3] == 'rollback'
    for id in string.gmatch(queue, '[^,]+') do
      count = count + 1
      if urgent and redis.call('HEXISTS', KEYS[6], id .. '!') == 0 then
        behind[#behind + 1] = id
      else
        ahead[#ahead + 1] = id
      end
    end
    if count >= tonumber(ARGV[7]) then
      return {'full'}
    end
    local added, size = known and 0 or (#ARGV - first + 1) / 7, 0
    if not known then
      local refusal = over()
      if refusal then
        return refusal
      end
      for i = first, #ARGV, 7 do
        size = size + tonumber(ARGV[i + 3])
      end
    end
    ahead[#ahead + 1] = m
    for _, id in ipairs(behind) do
      ahead[#ahead + 1] = id
    end
    queue = table.concat(ahead, ',')
    redis.call('HSET', KEYS[1], 'queue', queue)
    redis.call('HSET', KEYS[6], m, token, m .. '#', string.format('%d|%d', added, size))
    if urgent then
      redis.call('HSET', KEYS[6], m .. '!', ARGV[3])
      redis.call('HSET', KEYS[1], 'stop', current)
      if ARGV[3] == 'rollback' then
        redis.call('HSET', KEYS[1], 'undo', current)
      end
    end
    log_queue()
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
  log('{"parent":"' .. old[1] .. '",' .. string.sub(ARGV[#ARGV], 2))
  return finish({'current', old[1]})
end

local above = parent == '' and tip or parent == '.' and '' or parent
local count, bytes, pins = tonumber(have[7] or '0'), tonumber(have[8] or '0'), have[9] or ''
for i = first, #ARGV, 7 do
  local id = ARGV[i]
  if redis.call('HEXISTS', KEYS[2], id) == 1 then
    return {'taken'}
  end
end
local refusal = current ~= m and over()  -- what had to wait was let in before
if refusal then
  return refusal
end
for i = 12, first - 1, 2 do
  redis.call('HSETNX', KEYS[8], ARGV[i], ARGV[i + 1])
end
for i = first, #ARGV, 7 do
  local id = ARGV[i]
  -- Jump pointers (E. Myers, 1983): any ancestor is reached in O(log depth) steps.
  local up = header(above)
  local jump = header(up[2])
  local far = header(jump[2])
  local to = above
  if up[3] - jump[3] == jump[3] - far[3] then
    to = jump[2]
  end
  local state = id == m and 'running' or 'done'
  redis.call('HSET', KEYS[2], id,
    table.concat({above, to, string.format('%d', up[3] + 1), ARGV[i + 1], state, ARGV[i + 3], token, ARGV[i + 4], m}, '|'))
  redis.call('HSET', KEYS[3], id, ARGV[i + 5])
  local key = above == '' and '.' or above
  local below = redis.call('HGET', KEYS[4], key)
  redis.call('HSET', KEYS[4], key, below and below .. ',' .. id or id)
  if ARGV[i + 2] == '1' then
    pins = pins == '' and id or pins .. ',' .. id
  end
  log('{"parent":' .. (above == '' and 'null' or '"' .. above .. '"') .. ',' .. string.sub(ARGV[i + 6], 2))
  count, bytes, above = count + 1, bytes + tonumber(ARGV[i + 3]), id
end
redis.call('HSET', KEYS[1], 'current', m, 'turn', token, 'tip', m, 'entries', count, 'bytes', bytes, 'pins', pins)
redis.call('HDEL', KEYS[1], 'due', 'asker', 'answered')
redis.call('DEL', KEYS[7])
return finish({'current', header(m)[1]})
