-- A message has ended: keep what stands of it and give the turn to the next one. Idempotent, compare-and-set on the token.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
-- ARGV[1]  message   ARGV[2]  its token
-- ARGV[3]  how it ended: done, failed, cancelled; or withdrawn: it was not admitted, nothing of it stays
-- ARGV[4]  now, Unix seconds   ARGV[5]  time to live of the conversation, milliseconds
-- ARGV[6]  events kept in the log, about
-- ARGV[7]  bytes of the answer   ARGV[8]  its body   ARGV[9]  event (the state is put into it here)
-- ARGV[10]  when lost answers of its tool calls time out, Unix seconds   ARGV[11]  tokens of the answer
-- ARGV[12]  how many large parts it has   ARGV[13…]  two of each: its hash, its bytes; written only if the answer stands
-- then      ids of its tool calls
--
-- {'deleted'}  the conversation was deleted: what the message's own keys hold is to be erased
-- {'advanced', state, next}   something was done (`next`: whose turn it is now)   {'nothing'}   it had been done before
local have = redis.call('HMGET', KEYS[1], 'deleted', 'current', 'turn', 'tip', 'head', 'queue', 'entries', 'bytes', 'stop', 'undo')
if have[1] then
  return {'deleted'}
end
local m, token, state = ARGV[1], ARGV[2], ARGV[3]
local current, tip, queue = have[2] or '', have[4] or '', have[6] or ''
local head, entries, bytes = tonumber(have[5] or '0'), tonumber(have[7] or '0'), tonumber(have[8] or '0')
local before = head

local function tell(event)
  head = log(head, ARGV[6], event)
end

local function without(list, unwanted)
  local kept = {}
  for id in string.gmatch(list, '[^,]+') do
    if id ~= unwanted then
      kept[#kept + 1] = id
    end
  end
  return table.concat(kept, ',')
end

local function remove(id)
  local old = header(id)
  local key = old[1] == '' and '.' or old[1]
  local left = without(redis.call('HGET', KEYS[4], key) or '', id)
  if left == '' then
    redis.call('HDEL', KEYS[4], key)
  else
    redis.call('HSET', KEYS[4], key, left)
  end
  redis.call('HDEL', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('HSET', KEYS[1], 'pins', without(redis.call('HGET', KEYS[1], 'pins') or '', id))
  entries, bytes = entries - 1, bytes - tonumber(old[6])
  if tip == id then
    tip = old[1]
  end
  tell('{"type":"conversation","op":"removed","entry":"' .. id .. '","tip":"' .. tip .. '"}')
  return old[1]
end

local old = header(m)
local queued = redis.call('HGET', KEYS[6], m) == token
local turn = current == m and have[3] == token
-- one that failed, was reopened and ends before it has entered once more is kept as it ended, too
local again = (queued or turn) and old[4] == 'assistant' and old[7] ~= token and state ~= 'withdrawn'
if (old[7] == token and old[5] == 'running') or again then
  if state == 'withdrawn' and string.match(token, ':(%d+)$') ~= '1' then
    -- it had failed before and was to run again: it stands as it did, and may enter once more
    old[5], old[7] = 'failed', ''
    redis.call('HSET', KEYS[2], m, table.concat(old, '|'))
    tell('{"type":"message","id":"' .. m .. '","role":"assistant","state":"failed","parent":"' .. old[1] .. '"}')
  elseif state == 'withdrawn' then
    local above = remove(m)
    while above ~= '' and header(above)[9] == m do
      above = remove(above)
    end
  elseif state == 'cancelled' and have[10] == m and not redis.call('HGET', KEYS[4], m) then
    state = 'removed'
    remove(m)
  else
    if state == 'cancelled' and have[9] == m then
      state = 'interrupted'
    end
    bytes = bytes + tonumber(ARGV[7]) - tonumber(old[6])
    old[5], old[6], old[7], old[8] = state, ARGV[7], token, ARGV[11]
    redis.call('HSET', KEYS[2], m, table.concat(old, '|'))
    redis.call('HSET', KEYS[3], m, ARGV[8])
    local calls = 13 + 2 * tonumber(ARGV[12])
    for i = 13, calls - 1, 2 do
      redis.call('HSETNX', KEYS[8], ARGV[i], ARGV[i + 1])
    end
    tell('{"state":"' .. state .. '","parent":"' .. old[1] .. '",' .. string.sub(ARGV[9], 2))
    if #ARGV >= calls and tip == m then
      redis.call('DEL', KEYS[7])
      for i = calls, #ARGV do
        redis.call('HSET', KEYS[7], ARGV[i], '')
      end
      redis.call('HSET', KEYS[1], 'due', ARGV[10], 'asker', m, 'answered', m)
    end
  end
end

local was = current
if queued then
  queue = without(queue, m)
  redis.call('HDEL', KEYS[6], m, m .. '!', m .. '#')
elseif turn then
  redis.call('HDEL', KEYS[6], m .. '#')  -- of one that ends before it has entered
  current = string.match(queue, '^[^,]+') or ''
  queue = without(queue, current)
  redis.call('HSET', KEYS[1], 'current', current, 'turn', redis.call('HGET', KEYS[6], current) or '')
  redis.call('HDEL', KEYS[1], 'stop', 'undo')
  if current ~= '' then
    redis.call('HDEL', KEYS[6], current, current .. '!')
  end
end
if (queued or turn) and state ~= 'withdrawn' and redis.call('HEXISTS', KEYS[2], m) == 0 then
  redis.call('HSET', KEYS[6], '~' .. m, '')  -- it has no entry, but a record: deletion has to find that
end
if queued or was ~= current then
  tell(queue_event(current, queue))
end
if head == before then
  return {'nothing'}
end
redis.call('HSET', KEYS[1], 'queue', queue, 'tip', tip, 'entries', entries, 'bytes', bytes)
changed(head, ARGV[4], ARGV[5])
return {'advanced', state, current}
