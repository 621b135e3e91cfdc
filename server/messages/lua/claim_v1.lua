-- Create a message, or tell what stands under its id (G1).
--
-- KEYS[1]  record of the message   KEYS[2]  journal   KEYS[3]  standing text
-- ARGV[1]  fingerprint of the request
-- ARGV[2]  time to live of the claim, milliseconds
-- ARGV[3]  `retry_of`: seq of a temporary failure to reopen, or ''
-- ARGV[4]  most runs of one message
-- ARGV[5]  the caller: the node's incarnation
-- ARGV[6]  random text that no other claim has: where Redis loses a claim and grants it anew, the fences must differ
-- ARGV[7]  how far the seqs jump where a failure is reopened: random, so that what Redis may have lost of an earlier
--          reopening, and a reader still has, is not mixed with what follows now
-- ARGV[8…] field, value, … of a new record (without fp, state, head, tip, fence, run); none: never create
--
-- {'new', fence}                        created; the caller owns it
-- {'reopened', fence, head, attempts, generation, run, records, request, origin, tip}   a failure was reopened; the
--                                       caller owns it
-- {'have', state, head, generation, owner, fence}
-- {'mismatch'}                          another request stands under this id
-- {'none'}                              there is none, and the caller can't make one
local have = redis.call('HMGET', KEYS[1], 'fp', 'state', 'head', 'gen', 'owner', 'fence', 'retry', 'run', 'attempts', 'records',
  'req', 'origin')
if not have[1] then
  if #ARGV < 8 then
    return {'none'}
  end
  local fence = '1:' .. ARGV[5] .. ':' .. ARGV[6]
  redis.call('HSET', KEYS[1], 'fp', ARGV[1], 'state', 'admitting', 'head', '0', 'tip', '0', 'run', '1', 'attempts', '0',
    'owner', ARGV[5], 'fence', fence, unpack(ARGV, 8))
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return {'new', fence}
end
if have[1] ~= ARGV[1] then
  return {'mismatch'}
end
if ARGV[3] ~= '' and have[2] == 'failed' and have[7] == '1' and have[3] == ARGV[3]
    and tonumber(have[8]) < tonumber(ARGV[4]) then
  local counter = tonumber(string.match(have[6], '^(%d+):')) + 1
  local fence = string.format('%d:%s:%s', counter, ARGV[5], ARGV[6])
  local tip = string.format('%d', tonumber(have[3]) + tonumber(ARGV[7]))
  redis.call('HSET', KEYS[1], 'state', 'admitting', 'owner', ARGV[5], 'fence', fence, 'run', tonumber(have[8]) + 1,
    'tip', tip)
  redis.call('HDEL', KEYS[1], 'end', 'retry', 'cancel', 'standing')
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  redis.call('PERSIST', KEYS[2])
  redis.call('DEL', KEYS[3])
  return {'reopened', fence, have[3], have[9], have[4], tostring(tonumber(have[8]) + 1), have[10] or '', have[11],
    have[12] or '', tip}
end
if have[3] == '0' and (have[2] == 'queued' or have[2] == 'streaming') then
  -- the caller will say that it is accepted: should the owner not know that it was admitted, it may not take it back
  redis.call('HSET', KEYS[1], 'attached', '1')
end
return {'have', have[2], have[3], have[4], have[5], have[6]}
