-- Replace a hold by what was really used, and write the usage records into the ledger's stream: both exactly once.
--
-- KEYS[1]  clock of the tag   KEYS[2]  the hold   KEYS[3]  shard channel of the user   KEYS[4]  the ledger's stream
--          then for each owner: bucket, leases, amounts (see common_v1.lua)
-- ARGV[1]  id of the hold
-- ARGV[2]  tokens, ARGV[3] nano-dollars that were used; below 0 where an earlier run's are given back
-- ARGV[4]  length of a lease, microseconds   ARGV[5] how long a settled hold is remembered, milliseconds
-- ARGV[6]  '1': nothing was dispatched, the request is given back, too; else ''
-- ARGV[7]  who publishes what is left
-- ARGV[8]  the usage records, packed, or ''   ARGV[9]  the highest number of an attempt among them
-- ARGV[10…] of each owner six as in reserve_v1.lua
--
-- {verdict, now, …show of each owner}. Verdicts: settled · again (it was; nothing changes) · unknown (there was no such
-- hold: what was used is debited, and a reservation under this id that comes late finds it settled).
-- `again` writes no records either, unless there are attempts of which it was not told: then the message's end was lost
-- by its own primary, and it ran again.
-- What is given back never fills a bucket over its limit; what was used beyond the hold becomes debt.
local id, tokens, nano = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, leased, step = tick(KEYS[1], tonumber(ARGV[4]))
local owners = owners_at(5, 10, now, leased)

local have = redis.call('HMGET', KEYS[2], 'tokens', 'settled', 'booked')
local verdict = have[2] and 'again' or have[1] and 'settled' or 'unknown'
if verdict ~= 'again' then
  for _, o in ipairs(owners) do
    local took = o.counts and redis.call('HMGET', KEYS[2], 't' .. o.part, 'r' .. o.part)
    if o.tokens and o.t then
      o.t = o.t + (tonumber(took[1]) or 0) - tokens
      if o.t >= o.tpm then
        o.t, o.tp = o.tpm, 0
      end
    end
    if o.requests and o.r and ARGV[6] == '1' and took[2] then
      o.r = o.r + 1
      if o.r >= o.rpm then
        o.r, o.rp = o.rpm, 0
      end
    end
    if o.counts then
      o.spent = math.max(0, o.spent + nano)
      unlease(o, id)
      save(o)
    end
  end
  redis.call('HSET', KEYS[2], 'tokens', have[1] or '0', 'settled', int(tokens), 'settled_nano', int(nano),
    'settled_at', int(now), 'settled_step', int(step))
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
if ARGV[8] ~= '' and tonumber(ARGV[9]) > (tonumber(have[3]) or 0) then
  redis.call('XADD', KEYS[4], '*', 'e', ARGV[8])
  redis.call('HSET', KEYS[2], 'booked', ARGV[9])
end

local numbers = {}
for _, o in ipairs(owners) do
  show(numbers, o)
end
if verdict ~= 'again' then
  publish(KEYS[3], now, numbers, ARGV[7])
end
return {verdict, int(now), unpack(numbers)}
