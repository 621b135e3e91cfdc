-- Read entries of a branch in one round trip, from the newest to the oldest; the cost does not depend on its length.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children
-- ARGV[1]  'before': those that lie before the anchor; 'after': those that follow it on the branch
-- ARGV[2]  the anchor, an entry; '' (before) the end of the branch, (after) its beginning
-- ARGV[3]  most entries   ARGV[4]  bytes after which the page is full (the entry that fills it is still in it)
-- ARGV[5]  '1': this is for a model. The limit is in tokens, pinned entries before the page are told, siblings are not
-- ARGV[6]  an entry: the branch that goes through it to its newest end; '' the chosen one
--
-- {'deleted'}  {'anchor'}: no such entry (on this branch)
-- {head, tip, current, queue, title, more, {id, header, body, siblings, …}, {the same of earlier pinned ones}, pins, due}
-- `due`: when open tool calls time out, Unix seconds; '' if there are none
-- `more`: '1' if the branch goes on beyond the page, in the direction of reading
local have = redis.call('HMGET', KEYS[1], 'deleted', 'head', 'tip', 'current', 'queue', 'title', 'pins', 'due')
if have[1] then
  return {'deleted'}
end
local tip, limit, budget = have[3] or '', tonumber(ARGV[3]), tonumber(ARGV[4])
local branch = tip
if ARGV[6] ~= '' then
  if redis.call('HEXISTS', KEYS[2], ARGV[6]) == 0 then
    return {'anchor'}
  end
  branch = newest(ARGV[6])
end

local function ancestor(id, depth)
  local at = header(id)
  while tonumber(at[3]) > depth do
    local jump = header(at[2])
    if tonumber(jump[3]) >= depth then
      id, at = at[2], jump
    else
      id = at[1]
      at = header(id)
    end
  end
  return id
end

local anchor = ARGV[2]
if anchor ~= '' and redis.call('HEXISTS', KEYS[2], anchor) == 0 then
  return {'anchor'}
end
local id, stop, more = branch, 0, ''
if ARGV[1] == 'before' then
  if anchor ~= '' then
    id = header(anchor)[1]
  end
else
  stop = tonumber(header(anchor)[3])
  if anchor ~= '' and ancestor(branch, stop) ~= anchor then
    return {'anchor'}
  end
  id = ancestor(branch, stop + limit)
  if id ~= branch then
    more = '1'
  end
end

local page, size = {}, 0
local for_model, count = ARGV[5] == '1', 0
local function add(into, entry, found, parent)
  local body = redis.call('HGET', KEYS[3], entry) or ''
  into[#into + 1] = entry
  into[#into + 1] = found
  into[#into + 1] = body
  into[#into + 1] = not for_model and redis.call('HGET', KEYS[4], parent == '' and '.' or parent) or ''
  return #body
end
while id ~= '' and count < limit and size < budget do
  local found = redis.call('HGET', KEYS[2], id)
  local parent, depth, tokens = string.match(found, '^([^|]*)|[^|]*|(%d+)|.*|(%d+)|[^|]*$')
  if tonumber(depth) <= stop then
    break
  end
  local bytes = add(page, id, found, parent)
  size = size + (for_model and tonumber(tokens) or bytes)
  id, count = parent, count + 1
end
if ARGV[1] == 'before' and id ~= '' then
  more = '1'
end
local pinned = {}
if for_model and id ~= '' then
  for pin in string.gmatch(have[7] or '', '[^,]+') do
    local fields = header(pin)
    if tonumber(fields[3]) <= tonumber(header(id)[3]) and ancestor(id, tonumber(fields[3])) == pin then
      add(pinned, pin, redis.call('HGET', KEYS[2], pin), fields[1])
    end
  end
end
return {have[2] or '0', tip, have[4] or '', have[5] or '', have[6] or '', more, page, pinned, have[7] or '', have[8] or ''}
