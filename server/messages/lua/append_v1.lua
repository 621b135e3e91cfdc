-- Append one entry to a journal and tell whoever listens (G2, G4).
--
-- KEYS[1]  record of the message   KEYS[2]  journal   KEYS[3]  shard channel
-- ARGV[1]  fence of the caller
-- ARGV[2]  tip that the entry must continue: the head, or further on since a takeover
-- ARGV[3]  seq of its last event: the new head
-- ARGV[4]  the entry, packed
-- ARGV[5]  seq of the last fresh or restart attempt in it, or ''
-- ARGV[6]  how many attempts the caller has allocated
-- ARGV[7]  '' or the state that the message ends with
-- ARGV[8]  with an end: the end event   ARGV[9] attempt records   ARGV[10] '1' if a repeat may reopen it, else ''
--
-- 1 written (or it had been: the same fence and the same bytes stand there) · 2 the same, and a cancel was requested
-- -1 fenced · -2 the message has ended · -4 there is no such message: Redis has lost its claim
-- {-3, tip, attempts} the entry does not continue the journal, or the attempts: Redis has lost what it had acknowledged
--   after `tip`; attempts: how many are allocated in the record, '' if the loss goes back to before the first of this run
local have = redis.call('HMGET', KEYS[1], 'fence', 'tip', 'state', 'cancel', 'attempts')
if not have[1] then
  return -4
end
if have[1] ~= ARGV[1] then
  return -1
end
local written = have[4] and 2 or 1
if have[2] ~= ARGV[2] then
  local id = ARGV[3] .. '-0'
  local there = redis.call('XRANGE', KEYS[2], id, id)[1]
  if there and there[2][2] == ARGV[1] and there[2][4] == ARGV[4] then
    return written
  end
end
if have[3] == 'done' or have[3] == 'failed' or have[3] == 'cancelled' then
  return -2
end
if have[2] ~= ARGV[2] or tonumber(have[5]) < tonumber(ARGV[6]) then
  return {-3, have[2], have[3] == 'streaming' and have[5] or ''}
end
redis.call('XADD', KEYS[2], ARGV[3] .. '-0', 'f', ARGV[1], 'e', ARGV[4])
redis.call('HSET', KEYS[1], 'head', ARGV[3], 'tip', ARGV[3])
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[1], 'base', ARGV[5])
end
if ARGV[7] ~= '' then
  redis.call('HSET', KEYS[1], 'state', ARGV[7], 'end', ARGV[8], 'records', ARGV[9], 'retry', ARGV[10])
end
redis.call('SPUBLISH', KEYS[3], ARGV[4])
return written
