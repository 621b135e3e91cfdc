-- Become the owner of a message whose owner is dead, has let go, or was this node itself (G4). Compare-and-set.
--
-- KEYS[1]  record of the message   KEYS[2]  journal   KEYS[3]  shard channel
-- ARGV[1]  the owner that is taken for dead
-- ARGV[2]  the caller: the node's incarnation
-- ARGV[3]  how far the seqs jump, so that nothing the dead owner may have written can be mixed with what follows;
--          random, so it also keeps this fence apart from one that Redis granted before and lost
-- ARGV[4]  note to publish
--
-- {}                      there is no such message      {'other'}  it has another owner by now
-- {'ended', field, …}     it has ended; the end may have to be finished
-- {'taken', field, …}     the caller owns it; the whole record follows, with the new fence and tip
local have = redis.call('HMGET', KEYS[1], 'owner', 'state', 'fence', 'tip')
if not have[1] then
  return {}
end
if have[1] ~= ARGV[1] then
  return {'other'}
end
local verdict = 'ended'
if have[2] ~= 'done' and have[2] ~= 'failed' and have[2] ~= 'cancelled' then
  verdict = 'taken'
  local counter = tonumber(string.match(have[3], '^(%d+):')) + 1
  redis.call('HSET', KEYS[1], 'owner', ARGV[2], 'fence', string.format('%d:%s:%s', counter, ARGV[2], ARGV[3]),
    'tip', string.format('%d', tonumber(have[4]) + tonumber(ARGV[3])))
  redis.call('SPUBLISH', KEYS[3], ARGV[4])
end
local record = redis.call('HGETALL', KEYS[1])
table.insert(record, 1, verdict)
return record
