-- Reserve in all of a user's and a tenant's buckets, or in none (G6). Idempotent by hold id.
--
-- KEYS[1]  clock of the tag   KEYS[2]  the hold   KEYS[3]  shard channel of the user
--          then for each owner: bucket, leases, amounts (see common_v1.lua)
-- ARGV[1]  id of the hold
-- ARGV[2]  tokens, ARGV[3] nano-dollars: the most that the message may use. More than an earlier call reserved under
--          this id tops the hold up, less leaves it as it is
-- ARGV[4]  length of a lease, microseconds   ARGV[5] how long a hold is remembered, milliseconds
-- ARGV[6]  '1': what is spent already is counted, whether there is room or not; else ''
-- ARGV[7]  who publishes what is left   ARGV[8…] of each owner its four limits, the part that it plays for this hold
--          (1 … 4, by which the hold knows what it took from it; '': none, it is only shown), and the numbers of those
--          limits that the hold is counted in, as '134'
--
-- {verdict, now, wait, limit, …show of each owner}. Verdicts:
-- held · again (it was there; a lease that was swept is renewed) · settled (it is over; nothing changes)
-- refused: nothing changes; `limit` is the one that takes longest, as 'OWNER:WHICH' (1 tokens, 2 requests, 3 holds at
--          once, 4 money), `wait` the exact microseconds until it has room, 0 for holds at once: somebody has to end
local id, tokens, nano = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now, leased, step = tick(KEYS[1], tonumber(ARGV[4]))
local forced = ARGV[6] == '1'
local owners = owners_at(4, 8, now, leased)

local have = redis.call('HMGET', KEYS[2], 'tokens', 'nano', 'settled')
local fresh = not have[1]
local verdict = fresh and 'held' or have[3] and 'settled' or 'again'
local more_tokens = math.max(0, tokens - (tonumber(have[1]) or 0))
local more_nano = math.max(0, nano - (tonumber(have[2]) or 0))

local wait, limit = -1, ''
local function lacks(owner, which, long)
  if long > wait then
    wait, limit = long, owner .. ':' .. which
  end
end
if verdict ~= 'settled' and not forced then
  for i, o in ipairs(owners) do
    if o.tokens and o.t and more_tokens > 0 and o.t < more_tokens then
      lacks(i, 1, wait_for(o.t, o.tp, o.tpm, more_tokens))
    end
    if o.requests and o.r and fresh and o.r < 1 then
      lacks(i, 2, wait_for(o.r, o.rp, o.rpm, 1))
    end
    if o.slotted and o.slots and fresh and slots_taken(o) >= o.slots then
      lacks(i, 3, 0)
    end
    if o.money and o.cap and (fresh or more_nano > 0) and o.spent + o.held + more_nano > o.cap then
      lacks(i, 4, month_start(o.month + 1) - now)
    end
  end
end
if wait >= 0 then
  verdict = 'refused'
end

if verdict == 'held' or verdict == 'again' then
  local fields = {
    'tokens', int(math.max(tokens, tonumber(have[1]) or 0)), 'nano', int(math.max(nano, tonumber(have[2]) or 0))
  }
  if fresh then
    fields[5], fields[6], fields[7], fields[8] = 'at', int(now), 'step', int(step)
  end
  for _, o in ipairs(owners) do
    if o.tokens and o.t then
      o.t = o.t - more_tokens
      if more_tokens > 0 then
        redis.call('HINCRBY', KEYS[2], 't' .. o.part, int(more_tokens))
      end
    end
    if o.requests and o.r and fresh then
      o.r = o.r - 1
      redis.call('HSET', KEYS[2], 'r' .. o.part, '1')
    end
    if o.counts then
      lease(o, id, tonumber(fields[4]), leased + tonumber(ARGV[4]))
      save(o)
    end
  end
  redis.call('HSET', KEYS[2], unpack(fields))
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end

local numbers = {}
for _, o in ipairs(owners) do
  show(numbers, o)
end
if verdict == 'held' or verdict == 'again' then
  publish(KEYS[3], now, numbers, ARGV[7])
end
return {verdict, int(now), int(wait), limit, unpack(numbers)}
