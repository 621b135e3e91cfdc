-- What the scripts of one conversation share; put in front of each of them when they are loaded.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
--
-- A header is parent, jump, depth, role, state, bytes, token, tokens and message, joined by '|'. `children` has the ids
-- below an entry, oldest first, joined by ','; those of the first entries under '.'. `waiting` has, of a message that
-- waits or has the turn and has not used it yet, its token and under 'id#' what it will add: entries|bytes.

local function header(id)
  local found = {}
  for field in string.gmatch((redis.call('HGET', KEYS[2], id) or '||0|||0||0|') .. '|', '([^|]*)|') do
    found[#found + 1] = field
  end
  return found
end

-- The newest end of the branch that goes through an entry.
local function newest(id)
  local below = redis.call('HGET', KEYS[4], id)
  while below do
    id = string.match(below, '[^,]+$')
    below = redis.call('HGET', KEYS[4], id)
  end
  return id
end

-- Hang an entry below another one; '' is the root.
local function hang(id, above, role, state, bytes, token, tokens, message, body)
  -- Jump pointers (E. Myers, 1983): any ancestor is reached in O(log depth) steps.
  local up = header(above)
  local jump = header(up[2])
  local far = header(jump[2])
  local to = above
  if up[3] - jump[3] == jump[3] - far[3] then
    to = jump[2]
  end
  redis.call('HSET', KEYS[2], id,
    table.concat({above, to, string.format('%d', up[3] + 1), role, state, bytes, token, tokens, message}, '|'))
  redis.call('HSET', KEYS[3], id, body)
  local key = above == '' and '.' or above
  local below = redis.call('HGET', KEYS[4], key)
  redis.call('HSET', KEYS[4], key, below and below .. ',' .. id or id)
end

-- Whether so many entries and bytes, and all that the messages of `claimed` (ids, joined by ',') have yet to add, go
-- beyond the most of either ('' is any): {'over', 'entries' or 'bytes'}, else nil.
local function over(entries, bytes, claimed, most_entries, most_bytes)
  for id in string.gmatch(claimed, '[^,]+') do
    local more, size = string.match(redis.call('HGET', KEYS[6], id .. '#') or '0|0', '^(%d+)|(%d+)$')
    entries, bytes = entries + tonumber(more), bytes + tonumber(size)
  end
  if most_entries ~= '' and entries > tonumber(most_entries) then
    return {'over', 'entries'}
  end
  return most_bytes ~= '' and bytes > tonumber(most_bytes) and {'over', 'bytes'} or nil
end

-- Log an event as the one after `head`, where about `kept` are kept; the new head.
local function log(head, kept, event)
  redis.call('XADD', KEYS[5], 'MAXLEN', '~', kept, string.format('%d-0', head + 1), 'e', event)
  return head + 1
end

-- The event that tells who has the turn and who waits.
local function queue_event(current, queue)
  local ids = {}
  for id in string.gmatch(queue, '[^,]+') do
    ids[#ids + 1] = '"' .. id .. '"'
  end
  return '{"type":"conversation","op":"queue","current":"' .. current .. '","queue":[' .. table.concat(ids, ',') .. ']}'
end

-- The conversation has changed: keep it for `ttl` milliseconds from `now` on, and tell who listens.
local function changed(head, now, ttl)
  redis.call('HSET', KEYS[1], 'head', head, 'updated', now)
  for i = 1, 8 do
    redis.call('PEXPIRE', KEYS[i], ttl)
  end
  redis.call('SPUBLISH', KEYS[9], tostring(head))
end

