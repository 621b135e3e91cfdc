-- Change what is not an entry: create, rename, choose a branch, pin.
--
-- KEYS[1] meta  [2] headers  [3] bodies  [4] children  [5] log  [6] waiting  [7] open tool calls  [8] parts  [9] channel
-- ARGV[1]  create, rename, title, choose, pin or unpin
-- ARGV[2]  the title as it is; the entry
-- ARGV[3]  the title as JSON   ARGV[4]  now, Unix seconds
-- ARGV[5]  time to live of the conversation, milliseconds   ARGV[6]  events kept in the log, about
-- ARGV[7]  most pinned entries
--
-- `title` sets one only if there is none yet, and never makes a conversation.
--
-- {'deleted'}  {'unknown'}  {'entry'}: no such entry  {'full'}: too many pins  {'changed', head}  {'same', head}
local have = redis.call('HMGET', KEYS[1], 'deleted', 'created', 'head', 'title', 'tip', 'pins')
if have[1] then
  return {'deleted'}
end
local op, value, head = ARGV[1], ARGV[2], tonumber(have[3] or '0')
if not have[2] and op ~= 'create' then
  return {'unknown'}
end
if (op == 'create' and have[2]) or (op == 'title' and have[4]) then
  return {'same', head}
end
local event
if op == 'create' or op == 'rename' or op == 'title' then
  if op ~= 'create' or value ~= '' then
    redis.call('HSET', KEYS[1], 'title', value)
  end
  event = '{"type":"conversation","op":"' .. (op == 'create' and 'created' or 'renamed') .. '","title":' .. ARGV[3] .. '}'
else
  if redis.call('HEXISTS', KEYS[2], value) == 0 then
    return {'entry'}
  end
  if op == 'choose' then
    value = newest(value)
    if value == have[5] then
      return {'same', head}
    end
    redis.call('HSET', KEYS[1], 'tip', value)
    event = '{"type":"conversation","op":"chosen","tip":"' .. value .. '"}'
  else
    local pins, count = {}, 0
    for id in string.gmatch(have[6] or '', '[^,]+') do
      if id ~= value then
        pins[#pins + 1] = id
      end
    end
    if op == 'pin' then
      if #pins >= tonumber(ARGV[7]) then
        return {'full'}
      end
      pins[#pins + 1] = value
    end
    redis.call('HSET', KEYS[1], 'pins', table.concat(pins, ','))
    event = '{"type":"conversation","op":"' .. op .. 'ned","entry":"' .. value .. '"}'
  end
end
head = log(head, ARGV[6], event)
redis.call('HSETNX', KEYS[1], 'created', ARGV[4])
changed(head, ARGV[4], ARGV[5])
return {'changed', head}
